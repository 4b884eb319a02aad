// Work that is done to each chunk of guest memory: who does it, where, and who is told.
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

/// Who works, where, and who is told.
struct Workforce {
    unsigned workers = 1; ///< at least 1; as many are used as there is work for
    CpuList cpus;         ///< where workers may run; empty: where the process may
    /// The CPUs of each node. The workers of a node's memory run on those of them that `cpus` permits.
    std::map<unsigned, CpuList> node_cpus;
    bool low_priority = false; ///< nice 19
    ProgressSink progress;
};

/// What is done with one chunk by one worker. False ends the worker's part.
using ChunkWork = std::function<bool(unsigned worker, GuestRange chunk, const std::stop_token& stop)>;

/// Does `work` with every chunk of `ranges`. The workers' threads are called "<name><index>". Tells the workforce's
/// observer how far `stage` has come. Returns false if `stop` was requested or a worker gave up.
/// Throws what `work` and the observer throw, and Error as run_in_parallel() does.
bool for_each_chunk(std::span<const PlacedRange> ranges, std::uint64_t chunk_bytes, const Workforce& workforce,
                    Stage stage, std::string_view name, const std::stop_token& stop, const ChunkWork& work);

} // namespace vmm::prefault
