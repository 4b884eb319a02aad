// The addresses to which the guest writes: the free memory as numbered slots, one per stride, and each CPU's share of
// them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "vmm/guest/memory_ranges.hpp"

namespace vmm::guest {

/// The slots [first, first + count).
struct Share {
    std::uint64_t first = 0;
    std::uint64_t count = 0;

    friend constexpr bool operator==(const Share&, const Share&) = default;
};

/// Share number `index` of `shares`. Together the shares are all `slots`, none overlaps another, and their sizes differ
/// by one at most. `shares` is at least 1 and `slots` below 2^52 / `shares`.
[[nodiscard]] constexpr Share share_of(std::uint64_t slots, std::uint64_t index, std::uint64_t shares) noexcept {
    const std::uint64_t first = slots * index / shares;
    return {first, (slots * (index + 1) / shares) - first};
}

/// Numbers the addresses to write to. Memory is divided into blocks of `stride` bytes, aligned to `stride`. Each block
/// that overlaps a range is one slot, and the slot's address is the lowest one inside the range. So one write per slot
/// reaches every page of `stride` bytes.
class Slots {
  public:
    constexpr Slots() noexcept = default;
    /// `stride` is a multiple of 4096 and not 0.
    constexpr Slots(const MemoryRanges& memory, std::uint64_t stride) noexcept : stride_(stride) {
        for (const Range& range : memory.ranges()) {
            pieces_[piece_count_] = {count_, range.base, range.base - (range.base % stride)};
            ++piece_count_;
            count_ += ((range.end - 1) / stride) - (range.base / stride) + 1;
        }
    }

    [[nodiscard]] constexpr std::uint64_t count() const noexcept { return count_; }

    /// The address of one slot; `slot` is below count().
    [[nodiscard]] constexpr std::uint64_t address(std::uint64_t slot) const noexcept {
        std::size_t i = 0;
        while (i + 1 < piece_count_ && pieces_[i + 1].first_slot <= slot) {
            ++i;
        }
        const Piece& piece = pieces_[i];
        return slot == piece.first_slot ? piece.base : piece.block + ((slot - piece.first_slot) * stride_);
    }

    /// Calls `visit(address)` for each slot of a share, in ascending order. Between two calls it does only an addition.
    template <typename Visit>
    constexpr void for_each(Share share, Visit visit) const noexcept {
        const std::uint64_t stride = stride_; // A copy, which no write of `visit` can change.
        std::uint64_t slot = share.first;
        const std::uint64_t end = share.first + share.count;
        for (std::size_t i = 0; i < piece_count_ && slot < end; ++i) {
            const std::uint64_t piece_end = i + 1 < piece_count_ ? pieces_[i + 1].first_slot : count_;
            if (slot >= piece_end) {
                continue;
            }
            const std::uint64_t stop = piece_end < end ? piece_end : end;
            const Piece& piece = pieces_[i];
            if (slot == piece.first_slot) {
                visit(piece.base);
                ++slot;
            }
            std::uint64_t address = piece.block + ((slot - piece.first_slot) * stride);
            for (; slot < stop; ++slot) {
                visit(address);
                address += stride;
            }
        }
    }

  private:
    /// One range: the number of its first slot, that slot's address, and the start of that slot's block.
    struct Piece {
        std::uint64_t first_slot = 0;
        std::uint64_t base = 0;
        std::uint64_t block = 0;
    };

    std::array<Piece, MemoryRanges::kCapacity> pieces_{};
    std::size_t piece_count_ = 0;
    std::uint64_t stride_ = 4096;
    std::uint64_t count_ = 0;
};

} // namespace vmm::guest
