// How hardware is made from the state of a machine, and goes on.
#pragma once

#include <deque>
#include <span>
#include <string>
#include <vector>

#include "kvm/uapi.hpp"
#include "kvm/vcpu.hpp"
#include "kvm/vm.hpp"
#include "kvm/x86/saved_vm.hpp"
#include "vmm/config.hpp"
#include "vmm/machine/generation_id.hpp"
#include "vmm/machine/guest_ram.hpp"
#include "vmm/machine/hardware.hpp"
#include "vmm/state/machine_state.hpp"

namespace vmm {

/// Maps the memory of `state` that was added while the guest ran: the ranges with which `ram` was not made. It is
/// called before there are memslots. Throws Error if no machine like that of `config` can have such memory.
void map_added_memory(GuestRam& ram, const Config& config, const MachineState& state);

/// Plugs the blocks that the guest of `state` had plugged. It is called before there are memslots. Throws Error if the
/// blocks are those of another machine than `ram`'s, or if the host has no memory for them.
void plug_saved_memory(GuestRam& ram, const MachineState& state);

/// Whether both guests have the same blocks plugged.
[[nodiscard]] bool have_same_plugged_memory(const MachineState& one, const MachineState& other);

/// Makes the vCPUs of `state` in `vm`, as far as that is possible before clocks are set. If KVM refuses a register that
/// a guest can do without, a line is appended to `refused`. `offered` is all that a guest can have here. Throws Error
/// if their number is not that of `config`, if this host's processor lacks features of theirs, or if KVM refuses their
/// state.
[[nodiscard]] std::deque<kvm::Vcpu> make_vcpus(kvm::Vm& vm, const Config& config,
                                               std::span<const kvm_cpuid_entry2> offered, const MachineState& state,
                                               std::vector<std::string>& refused);

/// How a guest goes on. By default it goes on as a copy that has stood still.
struct GoingOn {
    kvm::ClockPolicy clock = kvm::ClockPolicy::kStopped;
    GenerationPolicy generation = GenerationPolicy::kNew;
};

/// Sets the time stamp counters, the interrupt controllers, the timer and the clock, lets the devices go on, and tells
/// the guest of its generation. It is called once, as the last step before the vCPUs of `hardware`, which was made from
/// `state`, run. All of memory must have its content, or get it when it is touched. Throws Error.
void restore_clocks_and_interrupts(Hardware& hardware, const MachineState& state, const GoingOn& how);

} // namespace vmm
