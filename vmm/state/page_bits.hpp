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

/// A bit for each page of 4 KiB of each region, the first in bit 0, in the order of GuestMemory::regions(): what a
/// dirty log says.
using PageBits = std::vector<std::vector<std::uint64_t>>;

/// The pages of `ranges`, each of which is a part of one of `regions`.
[[nodiscard]] PageBits pages_of(std::span<const MemoryRegion> regions, std::span<const GuestRange> ranges);
/// None of them.
[[nodiscard]] PageBits no_pages(std::span<const MemoryRegion> regions);

[[nodiscard]] inline bool is_set(const std::vector<std::uint64_t>& pages, std::uint64_t page) noexcept {
    return (pages[page / 64] >> (page % 64) & 1U) != 0;
}
/// Sets or clears `count` pages from `first` on.
void set_pages(std::vector<std::uint64_t>& pages, std::uint64_t first, std::uint64_t count, bool on) noexcept;

/// Sets in `pages`, those of one region, what is set in `others` of the same region.
void join(std::vector<std::uint64_t>& pages, const std::vector<std::uint64_t>& others) noexcept;
/// Sets in `pages` what is set in `others`, as far as both have the same regions.
void join(PageBits& pages, const PageBits& others);
/// How many bytes of memory are set.
[[nodiscard]] std::uint64_t bytes_of(const PageBits& pages) noexcept;

// Both read guest memory that the guest and its devices may write meanwhile: what they find then is anything, and is
// read again, because whoever writes is logged. To ThreadSanitizer that is no race.

/// Whether all of `bytes`, a multiple of 8, and aligned to 8, are zero.
[[nodiscard]] bool is_zero(std::span<const std::byte> bytes) noexcept;
/// Copies `from`, a multiple of 8 bytes, to `to`, which is as long.
void copy_live(std::span<std::byte> to, std::span<const std::byte> from) noexcept;

/// Calls `take(first byte, bytes)` for each run of pages of `bytes` bytes for which `is_wanted(page)` holds.
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
