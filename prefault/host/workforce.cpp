#include "prefault/host/workforce.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <iterator>
#include <optional>

#include "kvm/host/stopwatch.hpp"
#include "prefault/host/chunk_queues.hpp"
#include "prefault/host/crew.hpp"

namespace vmm::prefault {

namespace {

/// The CPUs for a worker whose memory lies on `node`.
CpuList cpus_for(const Workforce& workforce, std::optional<unsigned> node) {
    const auto of_node = node ? workforce.node_cpus.find(*node) : workforce.node_cpus.end();
    if (of_node == workforce.node_cpus.end()) {
        return workforce.cpus;
    }
    const CpuList allowed = workforce.cpus.empty() ? usable_cpu_list() : workforce.cpus;
    CpuList near;
    std::set_intersection(of_node->second.begin(), of_node->second.end(), allowed.begin(), allowed.end(),
                          std::back_inserter(near));
    return near.empty() ? workforce.cpus : near; // If none of the node's CPUs is allowed, a far one is better than
                                                 // none.
}

} // namespace

bool for_each_chunk(std::span<const PlacedRange> ranges, std::uint64_t chunk_bytes, const Workforce& workforce,
                    Stage stage, std::string_view name, const std::stop_token& stop, const ChunkWork& work) {
    ChunkQueues queues(ranges, chunk_bytes, workforce.workers);
    std::atomic<std::uint64_t> done_bytes{0};
    std::atomic<bool> gave_up{false};
    const auto start = std::chrono::steady_clock::now();
    const auto tell = [&] {
        if (workforce.progress) {
            workforce.progress({stage, done_bytes.load(), queues.total_bytes(), seconds_since(start)});
        }
    };
    Crew crew{queues.useful_workers(), name, {}, workforce.low_priority, tell};
    for (unsigned worker = 0; worker < crew.workers; ++worker) {
        crew.cpus.push_back(cpus_for(workforce, queues.home(worker)));
    }
    run_in_parallel(crew, stop, [&](unsigned worker, const std::stop_token& crew_stop) {
        while (!crew_stop.stop_requested()) {
            const auto chunk = queues.take(worker);
            if (!chunk) {
                return;
            }
            if (!work(worker, *chunk, crew_stop)) {
                gave_up.store(true);
                return;
            }
            done_bytes.fetch_add(chunk->size);
        }
    });
    tell();
    return !stop.stop_requested() && !gave_up.load();
}

} // namespace vmm::prefault
