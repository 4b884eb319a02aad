// The ways to stop the machine.
#pragma once

#include "vmm/guest/acpi.hpp"

namespace vmm::guest {

/// Powers off: by ACPI or as a device tree says, else by QEMU's isa-debug-exit device, else by a triple fault.
[[noreturn]] void power_off(const PowerOff& how) noexcept;

} // namespace vmm::guest
