#include "prefault/dummy_vcpu.hpp"

#include <pthread.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>
#include <variant>

#include "kvm/error.hpp"
#include "kvm/kick.hpp"

namespace vmm::prefault {

namespace {

constexpr std::uint64_t kApicGlobalEnable = 1ULL << 11; // IA32_APIC_BASE (Intel SDM volume 3, 11.4.4)
constexpr std::uint64_t kFlagsRing3Io = 0x3002;         // IOPL 3, interrupts off, the bit that is always one

/// A flat ring-3 segment. `type` as in a descriptor (AMD64 volume 2, 4.8).
kvm_segment ring3_segment(std::uint16_t selector, std::uint8_t type, bool code) {
    kvm_segment segment{};
    segment.limit = 0xffffffff;
    segment.selector = selector;
    segment.type = type;
    segment.present = 1;
    segment.dpl = 3;
    segment.s = 1;
    segment.g = 1;
    segment.l = code ? 1 : 0;
    segment.db = code ? 0 : 1;
    return segment;
}

/// The state the stub runs in: 64-bit, ring 3, no interrupt and no exception handler. What a fault would do is a triple
/// fault, which comes back to us.
kvm_sregs stub_state(kvm_sregs state, const Scratch& scratch) {
    state.cs = ring3_segment(0x33, 0xb, true);
    state.ds = state.es = state.fs = state.gs = state.ss = ring3_segment(0x2b, 0x3, false);
    state.tr = {};
    state.tr.base = to_integer(scratch.task_state());
    state.tr.limit = Scratch::kTaskStateBytes - 1;
    state.tr.type = 0xb; // a busy 64-bit TSS: VMX does not enter without one
    state.tr.present = 1;
    state.ldt = {};
    state.ldt.unusable = 1;
    state.gdt = {};
    state.idt = {};
    state.cr0 = Scratch::kCr0;
    state.cr3 = to_integer(scratch.page_tables());
    state.cr4 = Scratch::kCr4;
    state.efer = Scratch::kEfer;
    state.apic_base &= ~kApicGlobalEnable;
    return state;
}

/// True where the stub says that it is done.
bool is_done(const kvm::Exit& exit) {
    const auto* const port = std::get_if<kvm::PioExit>(&exit);
    return port != nullptr && port->is_write && port->port == Scratch::kDonePort;
}

std::string why_it_failed(const kvm::Exit& exit) {
    if (const auto* const fault = std::get_if<kvm::FaultExit>(&exit)) {
        return fault->what;
    }
    if (std::holds_alternative<kvm::ShutdownExit>(exit)) {
        return "it took a triple fault";
    }
    if (const auto* const mmio = std::get_if<kvm::MmioExit>(&exit)) {
        return "there is no memory behind " + to_string(GuestAddress{mmio->address});
    }
    return "it came back for an unexpected reason";
}

} // namespace

DummyVcpu::DummyVcpu(const kvm::Vm& vm, unsigned id, std::span<const kvm_cpuid_entry2> cpuid, const Scratch& scratch,
                     kvm::AddressSpace address_space)
    : vcpu_(vm, id), stats_(vcpu_.stats()), scratch_(scratch) {
    vcpu_.set_cpuid(cpuid);
    take_state();
    if (address_space == kvm::AddressSpace::kSmm) {
        vcpu_.set_system_management_mode(true);
    }
    vcpu_.set_mp_state(kvm::MpState::kUninitialized);
}

DummyVcpu::DummyVcpu(kvm::Vcpu vcpu, const Scratch& scratch)
    : vcpu_(std::move(vcpu)), stats_(vcpu_.stats()), scratch_(scratch) {
    take_state();
    vcpu_.set_mp_state(kvm::MpState::kUninitialized);
}

void DummyVcpu::take_state() {
    vcpu_.set_special_registers(stub_state(vcpu_.special_registers(), scratch_));
}

void DummyVcpu::recover() {
    // An exit half done (a port, MMIO) is completed by the next run, which the kick keeps from going any further.
    kvm::kick(::pthread_self());
    static_cast<void>(vcpu_.run());
    kvm::discard_pending_kicks();
    take_state();
}

DummyVcpu::Outcome DummyVcpu::touch(GuestRange range, std::uint64_t stride_bytes, const std::stop_token& stop) {
    constexpr double kLookUpEverySeconds = 1;
    kvm_regs registers{};
    registers.rip = to_integer(scratch_.stub());
    registers.rflags = kFlagsRing3Io;
    registers.rdi = to_integer(range.base);
    registers.rsi = to_integer(range.end());
    registers.rdx = stride_bytes;
    vcpu_.set_registers(registers);
    vcpu_.set_mp_state(kvm::MpState::kRunnable);
    const std::stop_callback kick_out(stop, [thread = ::pthread_self()] { kvm::kick(thread); });
    const kvm::CpuTimeKicks look_up(kLookUpEverySeconds);
    const double deadline = kvm::cpu_seconds_of_this_thread() + kMostCpuSeconds;
    Outcome outcome{Outcome::End::kStopped, ""};
    while (!stop.stop_requested()) {
        const kvm::Exit exit = vcpu_.run();
        if (is_done(exit)) {
            outcome.end = Outcome::End::kDone;
            break;
        }
        const bool kicked = std::holds_alternative<kvm::KickedExit>(exit);
        if (!kicked || kvm::cpu_seconds_of_this_thread() > deadline) {
            const kvm_regs now = vcpu_.registers();
            outcome = {kicked ? Outcome::End::kHeld : Outcome::End::kFailed,
                       "a prefault vCPU failed on " + to_string(range) + ": " +
                           (kicked ? "it did not come to an end" : why_it_failed(exit)) + " (RIP " +
                           to_string(GuestAddress{now.rip}) + ", touching " + to_string(GuestAddress{now.rdi}) + ")"};
            recover();
            break;
        }
    }
    vcpu_.set_mp_state(kvm::MpState::kUninitialized);
    return outcome;
}

DummyVcpu::Outcome DummyVcpu::pre_fault(GuestRange range, std::uint64_t mapping_bytes, const std::stop_token& stop) {
    // 4096 mappings take KVM some milliseconds; and where it maps smaller than expected, 64 MiB are no more than
    // 16,384.
    const std::uint64_t call_bytes = std::max(mapping_bytes, std::min(4096 * mapping_bytes, 64 * kMiB));
    std::uint64_t done = 0;
    while (done < range.size) {
        if (stop.stop_requested()) {
            return {Outcome::End::kStopped, ""};
        }
        const GuestRange piece{GuestAddress{to_integer(range.base) + done}, std::min(call_bytes, range.size - done)};
        const kvm::Vcpu::PreFaulted result = vcpu_.pre_fault(piece);
        done += result.bytes;
        if (result.error_number != 0) {
            const std::string tried = "fill the second level of " + to_string(piece) + " by KVM_PRE_FAULT_MEMORY";
            switch (result.error_number) {
            case ENOENT:
                throw_errno(ENOENT, tried, "no memslot is there");
            case EOPNOTSUPP:
                throw_errno(EOPNOTSUPP, tried, "KVM does this with EPT or NPT only: take --prefault-method=touch");
            default:
                throw_errno(result.error_number, tried, "or take --prefault-method=touch");
            }
        }
    }
    return {};
}

} // namespace vmm::prefault
