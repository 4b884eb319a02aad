// The state of an x86 VM, beyond its vCPUs, as a value.
#pragma once

#include <array>
#include <cstdint>

#include "kvm/uapi.hpp"
#include "kvm/vm.hpp"

namespace vmm::kvm {

/// The interrupt controllers, the timer and the clock that KVM keeps for a VM. It may come from anywhere: KVM checks
/// it.
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

/// The vCPUs do not run, and their time stamp counters are read just before. After Vm::create_pit(). Throws Error.
[[nodiscard]] VmState save_vm(const Vm& vm);

/// Puts the interrupt controllers and the timer of `vm` into `state`. After the local APICs. Throws Error.
void restore_interrupts(Vm& vm, const VmState& state);

/// How many nanoseconds have passed for the guest since `state` was saved, by `policy`: never less than 0.
[[nodiscard]] std::uint64_t elapsed_ns(const VmState& state, ClockPolicy policy);

/// Lets the paravirtual clock go on from `state`, `later_ns` later. After restore_tsc(), and before any vCPU runs.
/// Throws Error.
void restore_clock(Vm& vm, const VmState& state, std::uint64_t later_ns);

} // namespace vmm::kvm
