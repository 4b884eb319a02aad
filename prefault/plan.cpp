#include "prefault/plan.hpp"

#include <algorithm>
#include <bit>
#include <cassert>

namespace vmm::prefault {

namespace {

constexpr std::uint64_t kSmallestChunk = 2 * kMiB;
constexpr std::uint64_t kLargestChunk = kGiB;
constexpr std::uint64_t kMostMappings = 32768; // 128 MiB of 4 KiB pages
constexpr std::uint64_t kChunksPerWorker = 16;

/// The number of pieces into which the multiples of `chunk_bytes` cut a range.
std::size_t chunks_in(GuestRange range, std::uint64_t chunk_bytes) {
    if (range.size == 0) {
        return 0;
    }
    const std::uint64_t last = to_integer(range.base) + (range.size - 1);
    return last / chunk_bytes - to_integer(range.base) / chunk_bytes + 1;
}

} // namespace

Plan::Plan(std::span<const GuestRange> ranges, std::uint64_t chunk_bytes) : chunk_bytes_(chunk_bytes) {
    assert(std::has_single_bit(chunk_bytes));
    pieces_.reserve(ranges.size());
    for (const GuestRange& range : ranges) {
        assert(pieces_.empty() || range.base >= pieces_.back().range.end());
        pieces_.push_back({range, chunk_count_});
        chunk_count_ += chunks_in(range, chunk_bytes);
        total_bytes_ += range.size;
    }
}

std::uint64_t Plan::chunk_bytes_for(std::uint64_t total_bytes, unsigned workers, std::uint64_t mapping_bytes) {
    const std::uint64_t smallest = std::max(kSmallestChunk, mapping_bytes);
    const std::uint64_t largest = std::max(std::min(kLargestChunk, kMostMappings * mapping_bytes), mapping_bytes);
    const std::uint64_t even_share =
        std::max<std::uint64_t>(1, total_bytes / (kChunksPerWorker * std::max(1U, workers)));
    return std::clamp(std::bit_floor(even_share), smallest, largest);
}

unsigned Plan::useful_workers(std::uint64_t total_bytes, unsigned workers, std::uint64_t mapping_bytes) {
    const std::uint64_t chunks = total_bytes / chunk_bytes_for(total_bytes, workers, mapping_bytes);
    return static_cast<unsigned>(std::clamp<std::uint64_t>(chunks, 1, std::max(1U, workers)));
}

GuestRange Plan::chunk(std::size_t index) const {
    assert(index < chunk_count_);
    const auto after = std::ranges::upper_bound(pieces_, index, {}, &Piece::first_chunk);
    const Piece& piece = *std::prev(after);
    const std::uint64_t base = to_integer(piece.range.base);
    const std::uint64_t end = to_integer(piece.range.end());
    const std::uint64_t window = (base / chunk_bytes_ + (index - piece.first_chunk)) * chunk_bytes_;
    const std::uint64_t start = std::max(base, window);
    return {GuestAddress{start}, std::min(end - window, chunk_bytes_) - (start - window)};
}

} // namespace vmm::prefault
