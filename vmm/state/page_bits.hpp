// Sets of pages of guest memory, and runs of pages.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvm/host/guest_memory.hpp"
#include "kvm/host/write_log.hpp"

namespace vmm {

/// The result of a dirty log: a bit for each page of 4 KiB of each region, in the order of GuestMemory::regions(). The
/// first page is bit 0.
using PageBits = std::vector<std::vector<std::uint64_t>>;

/// The set of the pages of `ranges`. Each range must be a part of one of `regions`.
[[nodiscard]] PageBits pages_of(std::span<const MemoryRegion> regions, std::span<const GuestRange> ranges);
/// The empty set.
[[nodiscard]] PageBits no_pages(std::span<const MemoryRegion> regions);

[[nodiscard]] inline bool is_set(const std::vector<std::uint64_t>& pages, std::uint64_t page) noexcept {
    return (pages[page / 64] >> (page % 64) & 1U) != 0;
}
/// Sets or clears `count` pages from `first` on.
void set_pages(std::vector<std::uint64_t>& pages, std::uint64_t first, std::uint64_t count, bool on) noexcept;

/// Adds the pages in `others` to `pages`. Both belong to the same region.
void join(std::vector<std::uint64_t>& pages, const std::vector<std::uint64_t>& others) noexcept;
/// Adds the pages in `others` to `pages`, for the regions that both have.
void join(PageBits& pages, const PageBits& others);
/// The number of bytes in the pages of the set.
[[nodiscard]] std::uint64_t bytes_of(const PageBits& pages) noexcept;

// Both functions read guest memory while the guest and its devices may write it. They may then read anything; the pages
// are read again later, because every write is logged. ThreadSanitizer does not see this as a race.

/// Whether all of `bytes` are zero. Their number is a multiple of 8, and they are aligned to 8.
[[nodiscard]] bool is_zero(std::span<const std::byte> bytes) noexcept;
/// Copies `from` to `to`, which has the same size: a multiple of 8 bytes.
void copy_live(std::span<std::byte> to, std::span<const std::byte> from) noexcept;

/// Calls `take(first byte, bytes)` for each run of pages for which `is_wanted(page)` holds, in a region of `bytes`
/// bytes.
template <typename IsWanted, typename Take>
void for_each_run(std::uint64_t bytes, IsWanted is_wanted, Take take) {
    std::uint64_t run = 0;
    for (std::uint64_t offset = 0; offset < bytes; offset += WriteLog::kPageBytes) {
        const std::uint64_t size = std::min(WriteLog::kPageBytes, bytes - offset);
        if (is_wanted(offset / WriteLog::kPageBytes)) {
            run += size;
            continue;
        }
        if (run != 0) {
            take(offset - run, run);
        }
        run = 0;
    }
    if (run != 0) {
        take(bytes - run, run);
    }
}

} // namespace vmm
