// What a guest runs that jumps to the BIOS to reboot.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "kvm/host/guest_address.hpp"

namespace vmm::loader {

/// Where real-mode code finds the BIOS reset vector (f000:fff0).
inline constexpr GuestAddress kResetVector{0xffff0};

/// Real-mode code for kResetVector that writes `value` to I/O port `port`, for ever.
///
/// Linux with EFI support, on a machine whose ACPI is hardware-reduced, reboots by EFI; if there is no EFI it falls
/// through to the BIOS (efi_reboot_required() and native_machine_emergency_restart() in arch/x86), and never tries the
/// ACPI reset register. There is no BIOS here: this code stands in for it.
[[nodiscard]] std::array<std::byte, 16> build_reset_vector(std::uint16_t port, std::uint8_t value) noexcept;

} // namespace vmm::loader
