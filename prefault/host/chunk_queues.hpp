// Decides which worker takes which chunk of guest memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>

#include "kvm/host/guest_address.hpp"
#include "prefault/host/placement.hpp"
#include "prefault/plan.hpp"

namespace vmm::prefault {

/// Holds the chunks of placed ranges, and gives them to workers. A worker gets the chunks of its own node first, and
/// then the chunks of other nodes, so that no worker is idle while there is work. A node with more memory has more
/// workers.
///
/// Threads: any thread may call take(); the rest is const.
class ChunkQueues {
  public:
    /// `ranges` must not overlap. `chunk_bytes` must be a power of two.
    ChunkQueues(std::span<const PlacedRange> ranges, std::uint64_t chunk_bytes, unsigned workers);

    [[nodiscard]] std::uint64_t total_bytes() const noexcept { return total_bytes_; }
    /// The number of workers that have chunks to do; at least 1.
    [[nodiscard]] unsigned useful_workers() const noexcept { return useful_workers_; }
    /// The node whose chunks `worker` takes first; nothing if memory has no assigned node.
    [[nodiscard]] std::optional<unsigned> home(unsigned worker) const;
    /// The next chunk for `worker`; nothing if all are taken.
    [[nodiscard]] std::optional<GuestRange> take(unsigned worker) noexcept;

  private:
    struct Group {
        Group(std::optional<unsigned> node_of_all, std::span<const GuestRange> ranges, std::uint64_t chunk_bytes)
            : node(node_of_all), plan(ranges, chunk_bytes), queue(plan) {}
        std::optional<unsigned> node;
        Plan plan;
        ChunkQueue queue;
    };
    [[nodiscard]] std::size_t home_group(unsigned worker) const;

    std::deque<Group> groups_; ///< a deque, because each queue refers to the plan beside it
    std::uint64_t total_bytes_ = 0;
    unsigned useful_workers_ = 1;
};

} // namespace vmm::prefault
