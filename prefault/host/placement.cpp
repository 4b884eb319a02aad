#include "prefault/host/placement.hpp"

#include <algorithm>

namespace vmm::prefault {

std::uint64_t total_bytes(std::span<const PlacedRange> ranges) noexcept {
    std::uint64_t total = 0;
    for (const PlacedRange& placed : ranges) {
        total += placed.range.size;
    }
    return total;
}

std::vector<PlacedRange> intersection(std::span<const PlacedRange> placed, std::span<const GuestRange> wanted) {
    std::vector<PlacedRange> result;
    for (const PlacedRange& piece : placed) {
        for (const GuestRange& range : wanted) {
            const GuestAddress start = std::max(piece.range.base, range.base);
            const GuestAddress end = std::min(piece.range.end(), range.end());
            if (start < end) {
                result.push_back({{start, to_integer(end) - to_integer(start)}, piece.node});
            }
        }
    }
    return result;
}

} // namespace vmm::prefault
