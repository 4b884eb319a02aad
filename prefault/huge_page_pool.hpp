// The host's pools of huge pages.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "kvm/guest_memory.hpp"

namespace vmm::prefault {

/// One pool (Documentation/admin-guide/mm/hugetlbpage.rst), in pages.
struct HugePagePool {
    std::uint64_t page_bytes = 0;
    std::uint64_t total = 0;
    std::uint64_t free = 0;
    std::uint64_t reserved = 0;   ///< of the free ones, promised to mappings that exist
    std::uint64_t overcommit = 0; ///< how many more the kernel may make on demand, beyond those it has made so

    /// What a new mapping can have for certain.
    [[nodiscard]] std::uint64_t available() const noexcept { return free > reserved ? free - reserved : 0; }
};

/// The pool for pages of `page_bytes`, or nothing where this host has no such page size.
[[nodiscard]] std::optional<HugePagePool> read_huge_page_pool(std::uint64_t page_bytes,
                                                              std::string_view sysfs_mm = "/sys/kernel/mm");

/// Throws Error where `bytes` of `page_size` cannot be had from the pool: says how many pages are free, how many are
/// needed and how to raise it. To be called before anything is created. Does nothing for kThp and k4K.
void check_huge_page_pool(PageSize page_size, std::uint64_t bytes, std::string_view sysfs_mm = "/sys/kernel/mm");

} // namespace vmm::prefault
