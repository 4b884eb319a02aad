// Work on each chunk of guest memory: which threads do it, where they run, and who observes it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <stop_token>
#include <string_view>

#include "kvm/host/guest_address.hpp"
#include "prefault/host/cpu_list.hpp"
#include "prefault/host/placement.hpp"
#include "prefault/progress.hpp"

namespace vmm::prefault {

/// The threads that work, their CPUs, and their observer.
struct Workforce {
    unsigned workers = 1; ///< at least 1; only as many are used as there is work for
    CpuList cpus;         ///< the CPUs that workers may use; empty: those of the process
    /// The CPUs of each node. Workers for a node's memory run on those of its CPUs that `cpus` permits.
    std::map<unsigned, CpuList> node_cpus;
    bool low_priority = false; ///< nice 19
    ProgressSink progress;
};

/// The work of one worker on one chunk. It returns false if the worker must end.
using ChunkWork = std::function<bool(unsigned worker, GuestRange chunk, const std::stop_token& stop)>;

/// Calls `work` for every chunk of `ranges`. The workers' threads are called "<name><index>", and the workforce's
/// observer learns how far `stage` has come. Returns false if `stop` was requested or a worker gave up.
/// Throws what `work` and the observer throw, and Error as run_in_parallel() does.
bool for_each_chunk(std::span<const PlacedRange> ranges, std::uint64_t chunk_bytes, const Workforce& workforce,
                    Stage stage, std::string_view name, const std::stop_token& stop, const ChunkWork& work);

} // namespace vmm::prefault
