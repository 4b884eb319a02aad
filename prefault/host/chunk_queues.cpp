#include "prefault/host/chunk_queues.hpp"

#include <algorithm>
#include <map>
#include <vector>

namespace vmm::prefault {

ChunkQueues::ChunkQueues(std::span<const PlacedRange> ranges, std::uint64_t chunk_bytes, unsigned workers) {
    std::map<std::optional<unsigned>, std::vector<GuestRange>> by_node;
    for (const PlacedRange& placed : ranges) {
        by_node[placed.node].push_back(placed.range);
    }
    std::size_t chunks = 0;
    for (auto& [node, node_ranges] : by_node) {
        std::ranges::sort(node_ranges, {}, &GuestRange::base);
        const Group& group = groups_.emplace_back(node, node_ranges, chunk_bytes);
        chunks += group.plan.chunk_count();
        total_bytes_ += group.plan.total_bytes();
    }
    useful_workers_ = static_cast<unsigned>(std::clamp<std::size_t>(chunks, 1, std::max(1U, workers)));
}

std::size_t ChunkQueues::home_group(unsigned worker) const {
    // The workers are spread evenly over the memory, and each belongs to the group that holds its place.
    const std::uint64_t place = total_bytes_ / useful_workers_ * (worker % useful_workers_) + 1;
    std::uint64_t end = 0;
    for (std::size_t i = 0; i < groups_.size(); ++i) {
        end += groups_[i].plan.total_bytes();
        if (place <= end) {
            return i;
        }
    }
    return 0;
}

std::optional<unsigned> ChunkQueues::home(unsigned worker) const {
    return groups_.empty() ? std::nullopt : groups_[home_group(worker)].node;
}

std::optional<GuestRange> ChunkQueues::take(unsigned worker) noexcept {
    if (groups_.empty()) {
        return std::nullopt;
    }
    const std::size_t first = home_group(worker);
    for (std::size_t i = 0; i < groups_.size(); ++i) {
        if (const auto chunk = groups_[(first + i) % groups_.size()].queue.take()) {
            return chunk;
        }
    }
    return std::nullopt;
}

} // namespace vmm::prefault
