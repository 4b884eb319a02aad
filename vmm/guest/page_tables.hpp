// The guest's own identity map, beyond the part in the image.
#pragma once

#include <cstdint>

#include "vmm/guest/memory_ranges.hpp"

namespace vmm::guest {

/// The physical address of the tables in the image, for CR3.
[[nodiscard]] std::uint64_t static_tables() noexcept;

/// Maps [4 GiB, top) into the tables in the image, rounded up to whole GiB. It takes the pages that it needs from
/// `free`, below 4 GiB. Returns false if there are not enough. CPU 0 calls this before the other CPUs start.
[[nodiscard]] bool extend_identity_map(std::uint64_t top, MemoryRanges& free) noexcept;

} // namespace vmm::guest
