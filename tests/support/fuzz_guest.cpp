// A guest that a fuzzer drives. Its initrd is a program of port, MMIO, memory and ring operations. All of its CPUs run
// the program at once, each from a different place (tests/fuzz/machine_targets.cpp). It starts like the built-in guest.
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "support/fuzz_guest.hpp"
#include "vmm/guest/acpi.hpp"
#include "vmm/guest/cpus.hpp"
#include "vmm/guest/machine.hpp"
#include "vmm/guest/page_tables.hpp"
#include "vmm/guest/power.hpp"
#include "vmm/guest/serial.hpp"
#include "vmm/guest/start_info.hpp"

namespace vmm::guest {
namespace {

using namespace vmm::testing::fuzz_guest;

constexpr std::uint64_t kTrampoline = 0x8000;
constexpr std::uint16_t kNext = 1;

struct Descriptor {
    std::uint64_t address;
    std::uint32_t length;
    std::uint16_t flags;
    std::uint16_t next;
};
struct Available {
    std::uint16_t flags;
    volatile std::uint16_t index;
    std::array<std::uint16_t, kQueueSize + 1> ring;
};
struct Used {
    std::uint16_t flags;
    volatile std::uint16_t index;
    std::array<std::uint64_t, kQueueSize + 1> ring;
};
/// The rings of one queue. All CPUs write to all of them.
struct alignas(4096) Rings {
    std::array<Descriptor, kQueueSize> descriptors;
    Available available;
    Used used;
};

constinit std::array<Rings, kQueues> rings{};
alignas(4096) constinit std::array<std::uint64_t, kBufferBytes / 8> buffer{};
alignas(4096) constinit std::array<std::byte, std::size_t{GUEST_STACK_BYTES} * kCpus> stacks{};
constinit std::span<const std::byte> program{};
constinit Acpi acpi{};

std::uint64_t address_of(const volatile void* what) noexcept {
    return reinterpret_cast<std::uint64_t>(what); // Memory is mapped to itself.
}

void write_register(std::uint64_t base, std::uint64_t offset, std::uint32_t value) noexcept {
    mmio_write<std::uint32_t>(base + offset, value);
}

void write_address(std::uint64_t base, std::uint64_t offset, const volatile void* what) noexcept {
    write_register(base, offset, static_cast<std::uint32_t>(address_of(what)));
    write_register(base, offset + 4, static_cast<std::uint32_t>(address_of(what) >> 32U));
}

/// Starts a device as a driver does (virtio 1.2, 3.1.1 and 4.2.2), with the features in `value`.
void start_device(std::uint64_t base, std::uint32_t value) noexcept {
    write_register(base, 0x070, 0);
    write_register(base, 0x070, 3);
    write_register(base, 0x024, 0);
    write_register(base, 0x020, value);
    write_register(base, 0x024, 1);
    write_register(base, 0x020, 1); // VERSION_1
    write_register(base, 0x070, 11);
    for (std::uint32_t queue = 0; queue < kQueuesOfADevice; ++queue) {
        Rings& ring = rings[(base / 4096 + queue) % kQueues];
        write_register(base, 0x030, queue);
        write_register(base, 0x038, kQueueSize);
        write_address(base, 0x080, ring.descriptors.data());
        write_address(base, 0x090, &ring.available);
        write_address(base, 0x0a0, &ring.used);
        write_register(base, 0x044, 1);
    }
    write_register(base, 0x070, 15);
}

void access_port(const Step& step) noexcept {
    if ((step.detail & 1U) != 0) {
        out8(step.place, static_cast<std::uint8_t>(step.value));
    } else if ((step.detail & 2U) != 0) {
        out16(step.place, static_cast<std::uint16_t>(step.value));
    } else {
        static_cast<void>(in8(step.place));
    }
}

void access_memory_of_devices(const Step& step) noexcept {
    const std::uint64_t address = kWindows[step.detail % kWindows.size()] + step.place;
    switch (step.detail >> 4U) {
    case 0:
        mmio_write<std::uint32_t>(address, step.value);
        break;
    case 1:
        mmio_write<std::uint8_t>(address, static_cast<std::uint8_t>(step.value));
        break;
    case 2:
        mmio_write<std::uint16_t>(address, static_cast<std::uint16_t>(step.value));
        break;
    case 3:
        mmio_write<std::uint64_t>(address, std::uint64_t{step.value} << 16U | step.place);
        break;
    case 4:
        static_cast<void>(mmio_read<std::uint8_t>(address));
        break;
    default:
        static_cast<void>(mmio_read<std::uint32_t>(address));
    }
}

void change_rings(const Step& step) noexcept {
    Rings& ring = rings[step.place % kQueues];
    const std::size_t entry = (step.place >> 8U) % kQueueSize;
    switch (step.detail % 4U) {
    case 0: { // a descriptor, mostly of the buffer
        const bool is_inside = (step.detail & 0x40U) == 0;
        const std::uint64_t where = is_inside ? address_of(buffer.data()) + step.value % kBufferBytes : step.value;
        ring.descriptors[entry] = {where, static_cast<std::uint32_t>((step.value >> 16U) % kBufferBytes),
                                   static_cast<std::uint16_t>(step.detail >> 2U & 7U),
                                   static_cast<std::uint16_t>(entry + (step.detail & kNext))};
        break;
    }
    case 1: // one more that is available
        ring.available.ring[ring.available.index % kQueueSize] = static_cast<std::uint16_t>(entry);
        asm volatile("mfence" : : : "memory");
        ring.available.index = static_cast<std::uint16_t>(ring.available.index + 1);
        break;
    case 2:
        ring.available.index = static_cast<std::uint16_t>(step.value);
        break;
    default:
        ring.available.flags = static_cast<std::uint16_t>(step.value);
        ring.used.index = static_cast<std::uint16_t>(step.value >> 16U);
    }
}

void run(const Step& step) noexcept {
    switch (step.kind % kKinds) {
    case kPort:
        access_port(step);
        break;
    case kDeviceMemory:
        access_memory_of_devices(step);
        break;
    case kStartDevice:
        start_device(kWindows[0] + std::uint64_t{step.place % kDevices} * 4096, step.value);
        break;
    case kRings:
        change_rings(step);
        break;
    case kDoorbell:
        write_register(kWindows[0] + std::uint64_t{step.place % kDevices} * 4096, 0x050, step.value % kQueuesOfADevice);
        break;
    default:
        buffer[step.place % buffer.size()] = std::uint64_t{step.value} << step.detail % 32U;
    }
}

/// Each CPU begins at a different step, and executes every step.
void run_program(std::size_t cpu) noexcept {
    const std::size_t steps = program.size() / sizeof(Step);
    for (std::size_t i = 0; i < steps && i < kMostSteps; ++i) {
        const std::size_t place = (i + cpu * steps / kCpus) % steps;
        Step step{};
        __builtin_memcpy(&step, program.data() + place * sizeof(Step), sizeof step);
        run(step);
    }
}

} // namespace

extern "C" [[noreturn]] void guest_main(std::uint32_t start_info_address, std::uint32_t /*given_tables*/) noexcept {
    serial::start();
    constexpr PhysicalMemory kMemory(kStaticMapEnd);
    const auto* const info = reinterpret_cast<const StartInfo*>(std::uint64_t{start_info_address}); // from the loader
    acpi = read_acpi(kMemory, info->rsdp_address);
    if (info->module_count != 0) {
        const auto* const module = reinterpret_cast<const Module*>(info->modules_address); // also from the loader
        program = kMemory.view(module->address, module->size);
    }
    std::array<std::uint32_t, kCpus - 1> others{};
    for (std::size_t i = 0; i < others.size(); ++i) {
        others[i] = static_cast<std::uint32_t>(i + 1);
    }
    static_cast<void>(start_cpus({others, static_tables(), kTrampoline, address_of(stacks.data())}));
    run_on_all(run_program);
    power_off(acpi.power_off);
}

} // namespace vmm::guest
