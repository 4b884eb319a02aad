// The state of an x86 VM, beyond its vCPUs, as a value.
#pragma once

#include <array>
#include <cstdint>

#include "kvm/uapi.hpp"
#include "kvm/vm.hpp"

namespace vmm::kvm {

/// The interrupt controllers, the timer and the clock that KVM keeps for a VM. They may come from an untrusted source:
/// KVM checks them.
struct VmState {
    std::array<kvm_irqchip, 3> interrupt_controllers{}; ///< both 8259s and the I/O APIC, in KVM's order
    kvm_pit_state2 timer{};
    kvm_clock_data clock{};        ///< of the paravirtual clock; nanoseconds
    std::uint64_t realtime_ns = 0; ///< the host's CLOCK_REALTIME when the clock was read
};

/// What the guest's clocks show after a restore.
enum class ClockPolicy {
    kStopped,  ///< no time has passed since the snapshot
    kRealtime, ///< the time that has passed on the host's clock has passed for the guest, too
};

/// Saves the state of `vm`. It must be called after Vm::create_pit(), while no vCPU runs, and just after their time
/// stamp counters were read. Throws Error.
[[nodiscard]] VmState save_vm(const Vm& vm);

/// Puts the interrupt controllers and the timer of `vm` into `state`. The local APICs must be restored before. Throws
/// Error.
void restore_interrupts(Vm& vm, const VmState& state);

/// How many nanoseconds have passed for the guest since `state` was saved, according to `policy`; never less than 0.
[[nodiscard]] std::uint64_t elapsed_ns(const VmState& state, ClockPolicy policy);

/// Lets the paravirtual clock go on from `state`, `later_ns` later. Must be called after restore_tsc(), and before any
/// vCPU runs. Throws Error.
void restore_clock(Vm& vm, const VmState& state, std::uint64_t later_ns);

} // namespace vmm::kvm
