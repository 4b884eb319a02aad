// The state of a paused machine.
#pragma once

#include "vmm/config.hpp"
#include "vmm/machine/first_state.hpp"
#include "vmm/machine/hardware.hpp"
#include "vmm/state/machine_state.hpp"

namespace vmm {

/// Returns the state of `hardware` without the content of its memory. It must be called inside
/// MachinePause::look_while_paused(), and memory must not change meanwhile. `config` is the configuration from which
/// the hardware was made, and `first` is the first state of the guest.
///
/// An interrupt that was signalled just before the pause may not have reached the interrupt controllers yet. Whoever
/// goes on from the state must interrupt once more for every reason that a device's registers still show.
///
/// Throws Error if KVM refuses, or if there is a custom device, which has no state.
[[nodiscard]] MachineState capture(Hardware& hardware, const Config& config, const FirstState& first);

} // namespace vmm
