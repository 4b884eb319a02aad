// One job over guest memory: its chunks, the workers that take them, and where each runs.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <stop_token>
#include <string_view>
#include <vector>

#include "kvm/host/guest_address.hpp"
#include "prefault/host/cpu_list.hpp"
#include "prefault/host/numa.hpp"
#include "prefault/plan.hpp"
#include "prefault/progress.hpp"

namespace vmm::prefault {

/// Who works, where, and who is told.
struct Workforce {
    unsigned workers = 1; ///< at least 1; as many are used as there is work for
    CpuList cpus;         ///< where workers may run; empty: where the process may
    /// The CPUs of each node: the workers of a node's memory run on those of them that `cpus` permits.
    std::map<unsigned, CpuList> node_cpus;
    bool low_priority = false; ///< nice 19
    ProgressSink progress;
};

/// Chunks of placed ranges, and which worker takes which: each at first those of its own node, then the others', so
/// that nobody is idle while there is work. Workers are dealt to the nodes by how much memory each has.
///
/// Threads: take() may be called from any thread; the rest is const.
class ChunkQueues {
  public:
    /// `ranges` do not overlap. `chunk_bytes` is a power of two.
    ChunkQueues(std::span<const PlacedRange> ranges, std::uint64_t chunk_bytes, unsigned workers);

    [[nodiscard]] std::uint64_t total_bytes() const noexcept { return total_bytes_; }
    /// How many of the workers there are chunks for; at least 1.
    [[nodiscard]] unsigned useful_workers() const noexcept { return useful_workers_; }
    /// The node whose chunks `worker` takes first; nothing where memory has no place.
    [[nodiscard]] std::optional<unsigned> home(unsigned worker) const;
    /// The next chunk for `worker`, or nothing when all are taken.
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

    std::deque<Group> groups_; ///< a deque: a queue refers to the plan beside it
    std::uint64_t total_bytes_ = 0;
    unsigned useful_workers_ = 1;
};

/// What is done with one chunk by one worker. False ends the worker's part.
using ChunkWork = std::function<bool(unsigned worker, GuestRange chunk, const std::stop_token& stop)>;

/// Does `work` with every chunk of `ranges`. Workers' threads are called "<name><index>". Tells the workforce's
/// observer of `stage`. Returns false if `stop` was requested or a worker gave up. Throws what `work` and the observer
/// throw, and Error as run_in_parallel() does.
bool for_each_chunk(std::span<const PlacedRange> ranges, std::uint64_t chunk_bytes, const Workforce& workforce,
                    Stage stage, std::string_view name, const std::stop_token& stop, const ChunkWork& work);

/// Sum of the sizes, in bytes.
[[nodiscard]] std::uint64_t total_bytes(std::span<const PlacedRange> ranges) noexcept;

/// Those parts of `placed` that lie in one of `wanted`, in the order of `placed`.
[[nodiscard]] std::vector<PlacedRange> intersection(std::span<const PlacedRange> placed,
                                                    std::span<const GuestRange> wanted);

} // namespace vmm::prefault
