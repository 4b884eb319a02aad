// The free memory: ranges of physical addresses, taken from the loader's memory map.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "vmm/guest/start_info.hpp"

namespace vmm::guest {

/// Physical addresses [base, end); never empty inside a MemoryRanges.
struct Range {
    std::uint64_t base = 0;
    std::uint64_t end = 0;

    friend constexpr bool operator==(const Range&, const Range&) = default;
    [[nodiscard]] constexpr std::uint64_t size() const noexcept { return end > base ? end - base : 0; }
};

/// The `size` bytes from `base` on, cut off at the end of the address space.
[[nodiscard]] constexpr Range make_range(std::uint64_t base, std::uint64_t size) noexcept {
    return {base, size <= UINT64_MAX - base ? base + size : UINT64_MAX};
}

/// Sorted, disjoint ranges of whole 4 KiB pages, in a fixed number of places.
class MemoryRanges {
  public:
    static constexpr std::size_t kCapacity = 128;

    /// Adds the whole pages inside `range`. Returns false, and changes nothing, if there is no place left.
    [[nodiscard]] constexpr bool add(Range range) noexcept {
        range = inside(range);
        if (range.size() == 0) {
            return true;
        }
        // Everything that overlaps or touches the new range is merged into it.
        std::size_t first = 0;
        while (first < count_ && ranges_[first].end < range.base) {
            ++first;
        }
        std::size_t last = first;
        while (last < count_ && ranges_[last].base <= range.end) {
            range.base = range.base < ranges_[last].base ? range.base : ranges_[last].base;
            range.end = range.end > ranges_[last].end ? range.end : ranges_[last].end;
            ++last;
        }
        if (!make_gap(first, last, 1)) {
            return false;
        }
        ranges_[first] = range;
        return true;
    }

    /// Removes every page that contains a byte of `range`. Returns false, and changes nothing, if there is no place
    /// left.
    [[nodiscard]] constexpr bool remove(Range range) noexcept {
        range = around(range);
        if (range.size() == 0) {
            return true;
        }
        std::size_t first = 0;
        while (first < count_ && ranges_[first].end <= range.base) {
            ++first;
        }
        std::size_t last = first;
        while (last < count_ && ranges_[last].base < range.end) {
            ++last;
        }
        if (first == last) {
            return true;
        }
        const Range before{ranges_[first].base, range.base};
        const Range after{range.end, ranges_[last - 1].end};
        const std::size_t kept = (before.size() != 0 ? 1U : 0U) + (after.size() != 0 ? 1U : 0U);
        if (!make_gap(first, last, kept)) {
            return false;
        }
        if (before.size() != 0) {
            ranges_[first] = before;
        }
        if (after.size() != 0) {
            ranges_[first + kept - 1] = after;
        }
        return true;
    }

    /// Removes `bytes` (a multiple of 4096) of contiguous memory, as high as possible below `limit` (a multiple of
    /// 4096, too), and returns their address.
    [[nodiscard]] constexpr std::optional<std::uint64_t> take(std::uint64_t bytes, std::uint64_t limit) noexcept {
        for (std::size_t i = count_; i > 0; --i) {
            const Range candidate = ranges_[i - 1];
            const std::uint64_t end = candidate.end < limit ? candidate.end : limit;
            if (end > candidate.base && end - candidate.base >= bytes) {
                return remove({end - bytes, end}) ? std::optional(end - bytes) : std::nullopt;
            }
        }
        return std::nullopt;
    }

    [[nodiscard]] constexpr std::span<const Range> ranges() const noexcept { return {ranges_.data(), count_}; }
    [[nodiscard]] constexpr std::uint64_t bytes() const noexcept {
        std::uint64_t sum = 0;
        for (const Range& range : ranges()) {
            sum += range.size();
        }
        return sum;
    }

  private:
    static constexpr std::uint64_t kPageMask = 4095;

    [[nodiscard]] static constexpr Range inside(Range range) noexcept {
        if (range.base > UINT64_MAX - kPageMask) {
            return {};
        }
        return {(range.base + kPageMask) & ~kPageMask, range.end & ~kPageMask};
    }
    [[nodiscard]] static constexpr Range around(Range range) noexcept {
        if (range.size() == 0) {
            return {};
        }
        return {range.base & ~kPageMask,
                range.end > UINT64_MAX - kPageMask ? UINT64_MAX & ~kPageMask : (range.end + kPageMask) & ~kPageMask};
    }

    /// Replaces the elements [first, last) by `places` elements, which the caller must then set.
    [[nodiscard]] constexpr bool make_gap(std::size_t first, std::size_t last, std::size_t places) noexcept {
        const std::size_t tail = count_ - last;
        if (first + places + tail > kCapacity) {
            return false;
        }
        if (first + places < last) {
            for (std::size_t i = 0; i < tail; ++i) {
                ranges_[first + places + i] = ranges_[last + i];
            }
        } else if (first + places > last) {
            for (std::size_t i = tail; i > 0; --i) {
                ranges_[first + places + i - 1] = ranges_[last + i - 1];
            }
        }
        count_ = first + places + tail;
        return true;
    }

    std::array<Range, kCapacity> ranges_{};
    std::size_t count_ = 0;
};

/// The RAM of a memory map inside `window`: the entries that are RAM, without the parts that other entries overlap.
/// Nothing if the map has too many ranges.
[[nodiscard]] constexpr std::optional<MemoryRanges> ram_within(std::span<const MemoryMapEntry> map,
                                                               Range window) noexcept {
    MemoryRanges ram;
    for (const MemoryMapEntry& entry : map) {
        if (entry.type != kMemoryTypeRam) {
            continue;
        }
        Range range = make_range(entry.address, entry.size);
        range.base = range.base > window.base ? range.base : window.base;
        range.end = range.end < window.end ? range.end : window.end;
        if (!ram.add(range)) {
            return std::nullopt;
        }
    }
    for (const MemoryMapEntry& entry : map) {
        if (entry.type != kMemoryTypeRam && !ram.remove(make_range(entry.address, entry.size))) {
            return std::nullopt;
        }
    }
    return ram;
}

} // namespace vmm::guest
