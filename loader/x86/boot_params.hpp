// The zero page, by which the Linux boot protocol tells a kernel about its machine.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include "kvm/host/guest_address.hpp"
#include "loader/boot_info.hpp"

namespace vmm::loader {

inline constexpr std::size_t kZeroPageBytes = 4096;
using ZeroPage = std::array<std::byte, kZeroPageBytes>;

/// `struct boot_params` (Documentation/arch/x86/zero-page.rst) for a kernel that was loaded at `kernel`. `setup_header`
/// is the content of the kernel file from 0x1f1 on. If it is empty (an ELF kernel has none), a minimal header is made.
[[nodiscard]] ZeroPage build_zero_page(const BootInfo& info, std::span<const std::byte> setup_header,
                                       GuestAddress kernel);

inline constexpr std::size_t kSetupDataHeaderBytes = 16;

/// A `struct setup_data` of type SETUP_DTB that contains the device tree `tree` (Documentation/arch/x86/boot.rst,
/// "setup_data"). It is the only element of its list.
[[nodiscard]] std::vector<std::byte> build_setup_dtb(std::span<const std::byte> tree);

} // namespace vmm::loader
