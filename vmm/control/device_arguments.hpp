// Devices as a request describes them: by the client that opens what they stand on, and by the machine.
#pragma once

#include "vmm/control/verbs.hpp"
#include "vmm/device_configs.hpp"

namespace vmm::control {

/// What add-disk is told. Throws Error if it asks for what no host can give.
[[nodiscard]] DiskConfig disk_config_of(const Arguments& arguments);

/// What add-net is told. Throws Error if it asks for what no host can give.
[[nodiscard]] NetConfig net_config_of(const Arguments& arguments);

} // namespace vmm::control
