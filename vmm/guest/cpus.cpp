#include "vmm/guest/cpus.hpp"

#include <array>
#include <atomic>
#include <cstring>

#include "vmm/guest/machine.hpp"

// boot.S
extern "C" const std::byte ap_trampoline[];
extern "C" const std::byte ap_trampoline_end[];
// Read by boot.S before a CPU has a stack: CR3, the stacks, how many of them there are, and how many are in use.
extern "C" {
constinit std::uint64_t ap_cr3 = 0;
constinit std::uint64_t ap_stacks = 0;
constinit std::uint32_t ap_stack_count = 0;
constinit std::uint32_t ap_tickets = 0;
}

namespace vmm::guest {
namespace {

// Local APIC registers (Intel SDM volume 3, chapter "APIC").
constexpr std::uint64_t kApicBase = 0xfee00000;
constexpr std::uint64_t kApicId = kApicBase + 0x20;
constexpr std::uint64_t kSpuriousVector = kApicBase + 0xf0;
constexpr std::uint64_t kCommandLow = kApicBase + 0x300;
constexpr std::uint64_t kCommandHigh = kApicBase + 0x310;
constexpr std::uint32_t kSoftwareEnableAndVector = 0x1ff;
constexpr std::uint32_t kDeliveryPending = 1U << 12;
constexpr std::uint32_t kInitAssert = 0x4500;
constexpr std::uint32_t kStartUp = 0x4600;
/// The broadcast address. It is the first ID that an interrupt command in xAPIC mode cannot address.
constexpr std::uint32_t kFirstIdOutOfReach = 255;

// A pause of 10 ms must follow INIT. A CPU that does not answer the first start-up IPI gets a second one.
constexpr std::uint64_t kInitCycles = std::uint64_t{1} << 25;
constexpr std::uint64_t kSecondStartUpCycles = std::uint64_t{1} << 29;
constexpr std::uint64_t kGiveUpCycles = std::uint64_t{1} << 35;

enum class State : std::uint32_t { kStarting, kUp, kGivenUp };

/// One of the other CPUs. Each has cache lines of its own.
struct alignas(128) Cpu {
    std::uint32_t apic_id = 0;
    /// Its number for Work. It is valid once the first step starts.
    std::size_t number = 0;
    std::atomic<State> state{State::kStarting};
};

constinit std::array<Cpu, kMaxCpus> cpus;
constinit std::size_t cpu_count = 0;
constinit std::size_t cpus_up = 0;

constinit Work current_work = nullptr;
alignas(128) constinit std::atomic<std::uint32_t> steps_started{0};
alignas(128) constinit std::atomic<std::size_t> cpus_finished{0};
alignas(128) constinit std::atomic<std::size_t> cpus_arrived{0};

void send(std::uint32_t apic_id, std::uint32_t command) noexcept {
    constexpr std::uint64_t kMaxCycles = std::uint64_t{1} << 24;
    wait_for_cycles(kMaxCycles, [] { return (mmio_read<std::uint32_t>(kCommandLow) & kDeliveryPending) == 0; });
    mmio_write<std::uint32_t>(kCommandHigh, apic_id << 24);
    mmio_write<std::uint32_t>(kCommandLow, command);
}

void send_to_all_in(State state, std::uint32_t command) noexcept {
    for (std::size_t i = 0; i < cpu_count; ++i) {
        if (cpus[i].apic_id < kFirstIdOutOfReach && cpus[i].state.load(std::memory_order_relaxed) == state) {
            send(cpus[i].apic_id, command);
        }
    }
}

/// Waits until `expected` CPUs have arrived, or until none has arrived for `patience` cycles.
void wait_for_arrivals(std::size_t expected, std::uint64_t patience) noexcept {
    std::size_t arrived = cpus_arrived.load(std::memory_order_acquire);
    while (arrived < expected &&
           wait_for_cycles(patience, [arrived] { return cpus_arrived.load(std::memory_order_acquire) != arrived; })) {
        arrived = cpus_arrived.load(std::memory_order_acquire);
    }
}

} // namespace

std::uint32_t this_apic_id() noexcept {
    return mmio_read<std::uint32_t>(kApicId) >> 24;
}

StartReport start_cpus(const StartPlan& plan) noexcept {
    cpu_count = plan.apic_ids.size() < kMaxCpus ? plan.apic_ids.size() : kMaxCpus;
    std::size_t reachable = 0;
    for (std::size_t i = 0; i < cpu_count; ++i) {
        cpus[i].apic_id = plan.apic_ids[i];
        reachable += cpus[i].apic_id < kFirstIdOutOfReach ? 1 : 0;
    }
    ap_cr3 = plan.tables;
    ap_stacks = plan.stacks;
    ap_stack_count = static_cast<std::uint32_t>(cpu_count);
    // In bounds: the trampoline is smaller than the page that the plan gives it.
    std::memcpy(reinterpret_cast<std::byte*>(plan.trampoline), ap_trampoline,
                static_cast<std::size_t>(ap_trampoline_end - ap_trampoline));
    std::atomic_thread_fence(std::memory_order_seq_cst);

    // The first step of the SDM's sequence. It is necessary: some hypervisors update the list of CPUs that can be
    // reached only when a local APIC is enabled. Until then they lose messages to the CPU that was created last.
    mmio_write(kSpuriousVector, kSoftwareEnableAndVector);
    const auto vector = static_cast<std::uint32_t>(plan.trampoline >> 12);
    send_to_all_in(State::kStarting, kInitAssert);
    wait_for_cycles(kInitCycles, [] { return false; });
    send_to_all_in(State::kStarting, kStartUp | vector);
    wait_for_arrivals(reachable, kSecondStartUpCycles);
    send_to_all_in(State::kStarting, kStartUp | vector);
    wait_for_arrivals(reachable, kGiveUpCycles);

    StartReport report;
    for (std::size_t i = 0; i < cpu_count; ++i) {
        State expected = State::kStarting;
        if (!cpus[i].state.compare_exchange_strong(expected, State::kGivenUp)) {
            ++cpus_up;
            cpus[i].number = cpus_up;
            continue;
        }
        if (cpus[i].apic_id < kFirstIdOutOfReach) {
            send(cpus[i].apic_id, kInitAssert);
        }
        report.failed.add(cpus[i].apic_id);
    }
    report.started = cpus_up;
    return report;
}

void run_on_all(Work work) noexcept {
    current_work = work;
    cpus_finished.store(0, std::memory_order_relaxed);
    steps_started.fetch_add(1, std::memory_order_release);
    work(0);
    while (cpus_finished.load(std::memory_order_acquire) != cpus_up) {
        pause();
    }
}

void stop_others() noexcept {
    send_to_all_in(State::kUp, kInitAssert);
}

/// The entry of the other CPUs after boot.S. It returns only for a CPU that is not wanted, which then spins.
extern "C" void ap_main() noexcept {
    const std::uint32_t apic_id = this_apic_id();
    Cpu* self = nullptr;
    for (std::size_t i = 0; i < cpu_count && self == nullptr; ++i) {
        self = cpus[i].apic_id == apic_id ? &cpus[i] : nullptr;
    }
    State expected = State::kStarting;
    if (self == nullptr || !self->state.compare_exchange_strong(expected, State::kUp)) {
        return;
    }
    cpus_arrived.fetch_add(1, std::memory_order_release);
    for (std::uint32_t step = 1;; ++step) {
        while (steps_started.load(std::memory_order_acquire) != step) {
            pause();
        }
        current_work(self->number);
        cpus_finished.fetch_add(1, std::memory_order_release);
    }
}

} // namespace vmm::guest
