// The state of a paused machine.
#pragma once

#include "vmm/config.hpp"
#include "vmm/machine/first_state.hpp"
#include "vmm/machine/hardware.hpp"
#include "vmm/state/machine_state.hpp"

namespace vmm {

/// The state of `hardware`, but for the content of its memory. It is for
/// MachinePause::look_while_paused(), and memory stays what it is meanwhile. `config` is what the hardware was made of,
/// and `first` what the guest began with.
///
/// An interrupt that was signalled just before the pause may not have come to the interrupt controllers yet. Whoever
/// goes on from the state interrupts once more for what is still to be seen in a device's registers.
///
/// Throws Error: KVM refuses, or a device of the embedding program has no state.
[[nodiscard]] MachineState capture(Hardware& hardware, const Config& config, const FirstState& first);

} // namespace vmm
