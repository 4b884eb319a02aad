#include "prefault/x86/prefault_vcpu.hpp"

#include <pthread.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <string>
#include <utility>
#include <variant>

#include "kvm/host/error.hpp"
#include "kvm/kick.hpp"

namespace vmm::prefault {

namespace {

constexpr std::uint64_t kApicGlobalEnable = 1ULL << 11; // IA32_APIC_BASE (Intel SDM volume 3, 11.4.4)
constexpr std::uint64_t kFlagsRing3Io = 0x3002;         // IOPL 3, interrupts off, the bit that is always one

/// A flat ring-3 segment. `type` is that of a descriptor (AMD64 volume 2, 4.8).
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

/// The state in which the stub runs: 64-bit, ring 3, no interrupt and no exception handler. Any error becomes a triple
/// fault, which exits to us.
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

/// True if `exit` is the one by which a stub reports that it is done.
bool is_done(const kvm::Exit& exit) {
    const auto* const port = std::get_if<kvm::PioExit>(&exit);
    return port != nullptr && port->is_write && port->port == Scratch::kDonePort && port->data.size() == 1;
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
    if (const auto* const port = std::get_if<kvm::PioExit>(&exit)) {
        return "it used port " + to_string(GuestAddress{port->port}) + ", which it must not use, or not from there";
    }
    return "it came back for an unexpected reason";
}

} // namespace

PrefaultVcpu::PrefaultVcpu(kvm::Vcpu vcpu, const Scratch& scratch, kvm::AddressSpace address_space)
    : vcpu_(std::move(vcpu)), stats_(vcpu_.stats()), scratch_(scratch), address_space_(address_space) {
    take_state();
    vcpu_.set_mp_state(kvm::MpState::kUninitialized);
}

void PrefaultVcpu::take_state() {
    vcpu_.set_special_registers(stub_state(vcpu_.special_registers(), scratch_));
    if (address_space_ == kvm::AddressSpace::kSmm) {
        vcpu_.set_system_management_mode(true);
    }
}

void PrefaultVcpu::recover() {
    // The next run completes an exit that is half done (a port, MMIO), and may exit again: an access to two pages exits
    // once more, and a string instruction exits at each element, up to 1024 times before KVM's emulator notices the
    // kick. After the kick has taken the vCPU out, nothing is left that could change its registers later.
    constexpr unsigned kMostExits = 16384;
    kvm::kick(::pthread_self());
    bool is_out = false;
    for (unsigned exits = 0; exits < kMostExits && !is_out; ++exits) {
        is_out = std::holds_alternative<kvm::KickedExit>(vcpu_.run());
    }
    kvm::discard_pending_kicks();
    lost_ = !is_out;
    vcpu_.forget_events();
    // `rsm` may have taken the vCPU out of system management mode, and a later instruction may have taken it into HLT.
    take_state();
}

std::optional<TouchResult> PrefaultVcpu::verdict(const kvm::Exit& exit, double deadline) const {
    if (!std::holds_alternative<kvm::KickedExit>(exit)) {
        return TouchResult{TouchResult::End::kFailed, why_it_failed(exit)};
    }
    if (vcpu_.mp_state().value_or(KVM_MP_STATE_RUNNABLE) != KVM_MP_STATE_RUNNABLE) {
        return TouchResult{TouchResult::End::kHeld, "it stands still, as after HLT"};
    }
    if (kvm::cpu_seconds_of_this_thread() > deadline) {
        return TouchResult{TouchResult::End::kHeld, "it did not come to an end"};
    }
    return std::nullopt;
}

TouchResult PrefaultVcpu::touch(GuestRange range, std::uint64_t stride_bytes, const std::stop_token& stop,
                                Access access) {
    constexpr std::chrono::seconds kLookUpEvery{1};
    if (lost_) {
        return {TouchResult::End::kFailed,
                "a prefault vCPU is of no use any more: the guest had it begin an instruction "
                "that does not end"};
    }
    kvm_regs registers{};
    registers.rip = to_integer(access == Access::kWrite ? scratch_.stub() : scratch_.reading_stub());
    registers.rflags = kFlagsRing3Io;
    registers.rdi = to_integer(range.base);
    registers.rsi = to_integer(range.end());
    registers.rdx = stride_bytes;
    vcpu_.set_registers(registers);
    vcpu_.set_mp_state(kvm::MpState::kRunnable);
    const std::stop_callback kick_out(stop, [thread = ::pthread_self()] { kvm::kick(thread); });
    const kvm::RegularKicks look_up(kLookUpEvery);
    const double deadline = kvm::cpu_seconds_of_this_thread() + kMostCpuSeconds;
    TouchResult result{TouchResult::End::kStopped, ""};
    while (!stop.stop_requested()) {
        const kvm::Exit exit = vcpu_.run();
        const kvm_regs now = vcpu_.registers();
        if (is_done(exit) && scratch_.is_end_of_stub(now.rip) && now.rdi >= registers.rsi) {
            result.end = TouchResult::End::kDone;
            break;
        }
        if (auto failure = verdict(exit, deadline)) {
            result = {failure->end, "a prefault vCPU failed on " + to_string(range) + ": " + failure->why + " (RIP " +
                                        to_string(GuestAddress{now.rip}) + ", touching " +
                                        to_string(GuestAddress{now.rdi}) + ")"};
            recover();
            break;
        }
    }
    vcpu_.set_mp_state(kvm::MpState::kUninitialized);
    return result;
}

TouchResult PrefaultVcpu::pre_fault(GuestRange range, std::uint64_t mapping_bytes, const std::stop_token& stop) {
    // 4,096 mappings take KVM some milliseconds. If its mappings are smaller than expected, 64 MiB are 16,384 mappings.
    const std::uint64_t call_bytes = std::max(mapping_bytes, std::min(4096 * mapping_bytes, 64 * kMiB));
    std::uint64_t done = 0;
    while (done < range.size) {
        if (stop.stop_requested()) {
            return {TouchResult::End::kStopped, ""};
        }
        const GuestRange piece{GuestAddress{to_integer(range.base) + done}, std::min(call_bytes, range.size - done)};
        const kvm::Vcpu::PreFaulted result = vcpu_.pre_fault(piece, stop);
        done += result.bytes;
        if (result.error_number != 0 && !stop.stop_requested()) {
            const std::string tried = "fill the second level of " + to_string(piece) + " by KVM_PRE_FAULT_MEMORY";
            throw_errno(result.error_number, tried,
                        {{ENOENT, "no memslot is there"},
                         {EHWPOISON, "a page of this host's memory is broken: look into its kernel log"},
                         {EOPNOTSUPP, "KVM does this with EPT or NPT only: take Config::prefault.method=touch"},
                         {ENOTTY, "it came with Linux 6.11: take Config::prefault.method=touch"},
                         {EINVAL, "this KVM does not take it: take Config::prefault.method=touch"},
                         {EFAULT, "the host has no memory for a page of it: free some, or enough huge pages"}});
        }
    }
    return {};
}

} // namespace vmm::prefault
