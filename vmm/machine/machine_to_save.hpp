// A machine whose state leaves it: for a snapshot, or for another process.
#pragma once

#include <stop_token>

#include "vmm/config.hpp"
#include "vmm/machine/first_state.hpp"
#include "vmm/machine/hardware.hpp"
#include "vmm/machine/machine_pause.hpp"

namespace vmm {

/// The parts of a machine from which its state is taken. All of them must outlive it.
struct MachineToSave {
    const Config& config;
    Hardware& hardware;
    MachinePause& pause;
    const FirstState& first;
};

/// Fills the second level again, if it was full before dirty pages were logged: logging has split large mappings, and
/// its end has dropped the small ones. Returns whether it is full then. Nobody may hold the second level
/// (MachineSecondLevel::Hold). Throws Error.
bool fill_again(const MachineToSave& machine, const std::stop_token& stop);

} // namespace vmm
