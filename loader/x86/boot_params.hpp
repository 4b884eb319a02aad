// The zero page: how the Linux boot protocol tells a kernel about its machine.
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

/// `struct boot_params` (Documentation/arch/x86/zero-page.rst) for a kernel that lies at `kernel`. `setup_header` is
/// what the kernel file holds from 0x1f1 on; if it is empty (an ELF kernel has none) a minimal one is made up.
[[nodiscard]] ZeroPage build_zero_page(const BootInfo& info, std::span<const std::byte> setup_header,
                                       GuestAddress kernel);

inline constexpr std::size_t kSetupDataHeaderBytes = 16;

/// `struct setup_data` of type SETUP_DTB, the only one in its list, with the device tree `tree` in it
/// (Documentation/arch/x86/boot.rst, "setup_data").
[[nodiscard]] std::vector<std::byte> build_setup_dtb(std::span<const std::byte> tree);

} // namespace vmm::loader
