// The built-in guest, as bytes in this binary.
#pragma once

#include <cstddef>
#include <span>

namespace vmm {

/// The ELF file of the built-in guest: a PVH kernel for x86-64, see vmm/guest/README.md.
[[nodiscard]] std::span<const std::byte> builtin_guest_image() noexcept;

} // namespace vmm
