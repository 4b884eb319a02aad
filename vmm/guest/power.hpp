// The ways to stop the machine.
#pragma once

#include "vmm/guest/acpi.hpp"

namespace vmm::guest {

/// Powers off by ACPI or as a device tree says. If that fails it uses QEMU's isa-debug-exit device, and at last a
/// triple fault.
[[noreturn]] void power_off(const PowerOff& how) noexcept;

} // namespace vmm::guest
