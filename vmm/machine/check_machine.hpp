// Whether a saved machine is the one that a configuration describes.
#pragma once

#include <string>

#include "vmm/config.hpp"
#include "vmm/state/machine_state.hpp"

namespace vmm {

/// Compares the memory and the vCPUs of both; devices compare themselves when they are made. `tried` begins the
/// message. Throws Error if they differ.
void check_machine_like(const MachineState& state, const Config& config, const std::string& tried);

} // namespace vmm
