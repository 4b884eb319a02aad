// The code that runs if a guest jumps to the BIOS to reboot.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "kvm/host/guest_address.hpp"

namespace vmm::loader {

/// The address of the BIOS reset vector in real mode (f000:fff0).
inline constexpr GuestAddress kResetVector{0xffff0};

/// Real-mode code for kResetVector that writes `value` to I/O port `port` without end.
///
/// It replaces the BIOS, which does not exist here. Linux with EFI support reboots by EFI if the machine's ACPI is
/// hardware-reduced. If there is no EFI, it jumps to the BIOS (efi_reboot_required() and
/// native_machine_emergency_restart() in arch/x86) and never tries the ACPI reset register.
[[nodiscard]] std::array<std::byte, 16> build_reset_vector(std::uint16_t port, std::uint8_t value) noexcept;

} // namespace vmm::loader
