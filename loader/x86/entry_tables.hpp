// The descriptor table with which a Linux kernel is entered, and the page tables for 64-bit mode.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvm/host/guest_address.hpp"

namespace vmm::loader {

/// The selectors that both boot protocols require (Documentation/arch/x86/boot.rst, "32-bit boot protocol", "64-bit
/// boot protocol").
inline constexpr std::uint16_t kBootCodeSelector = 0x10; ///< __BOOT_CS: flat, execute and read
inline constexpr std::uint16_t kBootDataSelector = 0x18; ///< __BOOT_DS: flat, read and write

using BootGdt = std::array<std::uint64_t, 4>;
/// The kind of code in the code segment.
enum class CodeSize { k32Bit, k64Bit };
/// The entries are null, unused, code, data. The limit in the vCPU's GDTR must be sizeof(BootGdt) - 1.
[[nodiscard]] BootGdt build_boot_gdt(CodeSize code) noexcept;

/// One top-level table, one table of the next level, and four page directories, one for each GiB.
inline constexpr std::size_t kIdentityMapBytes = std::size_t{6} * 4096;
/// The map covers guest-physical memory below this address.
inline constexpr std::uint64_t kIdentityMappedBytes = 4 * kGiB;

/// Page tables that map the first 4 GiB to themselves in 2 MiB pages, writable. The kIdentityMapBytes bytes belong at
/// `base`, a multiple of 4096, which is also the value for CR3.
[[nodiscard]] std::vector<std::byte> build_identity_map(GuestAddress base);

} // namespace vmm::loader
