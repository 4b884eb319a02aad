// The devices that a request describes. The client that opens the device's files uses this, and the machine.
#pragma once

#include "vmm/control/verbs.hpp"
#include "vmm/device_configs.hpp"

namespace vmm::control {

/// Returns the disk that add-disk asks for. Throws Error if no host can give it.
[[nodiscard]] DiskConfig disk_config_of(const Arguments& arguments);

/// Returns the network device that add-net asks for. Throws Error if no host can give it.
[[nodiscard]] NetConfig net_config_of(const Arguments& arguments);

} // namespace vmm::control
