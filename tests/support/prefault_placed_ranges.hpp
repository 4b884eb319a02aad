// Guest ranges with and without a node, and joined chunks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "prefault/host/placement.hpp"
#include "support/host_guest_range.hpp"

namespace vmm::testing {

[[nodiscard]] inline prefault::PlacedRange on_node(unsigned node, std::uint64_t base, std::uint64_t size) {
    return {range(base, size), node};
}

[[nodiscard]] inline prefault::PlacedRange anywhere(std::uint64_t base, std::uint64_t size) {
    return {range(base, size), std::nullopt};
}

/// `chunks` in ascending order, with neighbours joined. Returns nothing if two overlap, or if one is empty.
[[nodiscard]] inline std::optional<std::vector<GuestRange>> joined(std::vector<GuestRange> chunks) {
    std::ranges::sort(chunks, {}, &GuestRange::base);
    std::vector<GuestRange> result;
    for (const GuestRange& chunk : chunks) {
        if (chunk.size == 0 || (!result.empty() && result.back().end() > chunk.base)) {
            return std::nullopt;
        }
        if (!result.empty() && result.back().end() == chunk.base) {
            result.back().size += chunk.size;
        } else {
            result.push_back(chunk);
        }
    }
    return result;
}

} // namespace vmm::testing
