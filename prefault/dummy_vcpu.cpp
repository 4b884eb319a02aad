#include "prefault/dummy_vcpu.hpp"

#include <pthread.h>

#include <string>
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

DummyVcpu::DummyVcpu(const kvm::Vm& vm, unsigned id, std::span<const kvm_cpuid_entry2> cpuid, const Scratch& scratch)
    : vcpu_(vm, id), scratch_(scratch) {
    vcpu_.set_cpuid(cpuid);
    vcpu_.set_special_registers(stub_state(vcpu_.special_registers(), scratch_));
    vcpu_.set_mp_state(kvm::MpState::kUninitialized);
}

bool DummyVcpu::touch(GuestRange range, std::uint64_t stride_bytes, const std::stop_token& stop) {
    kvm_regs registers{};
    registers.rip = to_integer(scratch_.stub());
    registers.rflags = kFlagsRing3Io;
    registers.rdi = to_integer(range.base);
    registers.rsi = to_integer(range.end());
    registers.rdx = stride_bytes;
    vcpu_.set_registers(registers);
    vcpu_.set_mp_state(kvm::MpState::kRunnable);
    const std::stop_callback kick_out(stop, [thread = ::pthread_self()] { kvm::kick(thread); });
    bool done = false;
    while (!done && !stop.stop_requested()) {
        const kvm::Exit exit = vcpu_.run();
        done = is_done(exit);
        if (!done && !std::holds_alternative<kvm::KickedExit>(exit)) {
            const kvm_regs now = vcpu_.registers();
            throw Error("cannot fill the second level of " + to_string(range) + ": the prefault vCPU failed, " +
                        why_it_failed(exit) + " (RIP " + to_string(GuestAddress{now.rip}) + ", touching " +
                        to_string(GuestAddress{now.rdi}) + ")");
        }
    }
    vcpu_.set_mp_state(kvm::MpState::kUninitialized);
    return done;
}

} // namespace vmm::prefault
