#include "prefault/host/crew.hpp"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <chrono>

#include "prefault/host/parallel.hpp"

namespace vmm::prefault {

std::string_view to_string(Stage stage) noexcept {
    switch (stage) {
    case Stage::kHost:
        return "host memory";
    case Stage::kPin:
        return "pin";
    case Stage::kSecondLevel:
        return "second level";
    case Stage::kSmm:
        return "second level of SMM";
    }
    return "?";
}

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

ChunkQueues::ChunkQueues(std::span<const PlacedRange> ranges, std::uint64_t chunk_bytes, unsigned workers) {
    std::map<std::optional<unsigned>, std::vector<GuestRange>> by_node;
    for (const PlacedRange& placed : ranges) {
        by_node[placed.node].push_back(placed.range);
    }
    std::size_t chunks = 0;
    for (auto& [node, node_ranges] : by_node) {
        std::sort(node_ranges.begin(), node_ranges.end(),
                  [](const GuestRange& a, const GuestRange& b) { return a.base < b.base; });
        const Group& group = groups_.emplace_back(node, node_ranges, chunk_bytes);
        chunks += group.plan.chunk_count();
        total_bytes_ += group.plan.total_bytes();
    }
    useful_workers_ = static_cast<unsigned>(std::clamp<std::size_t>(chunks, 1, std::max(1U, workers)));
}

std::size_t ChunkQueues::home_group(unsigned worker) const {
    // The worker's place on a line on which each group takes as much room as it has memory.
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

namespace {

/// Where a worker whose memory lies on `node` runs.
CpuList cpus_for(const Workforce& workforce, std::optional<unsigned> node) {
    const auto of_node = node ? workforce.node_cpus.find(*node) : workforce.node_cpus.end();
    if (of_node == workforce.node_cpus.end()) {
        return workforce.cpus;
    }
    const CpuList allowed = workforce.cpus.empty() ? usable_cpu_list() : workforce.cpus;
    CpuList near;
    std::set_intersection(of_node->second.begin(), of_node->second.end(), allowed.begin(), allowed.end(),
                          std::back_inserter(near));
    return near.empty() ? workforce.cpus : near; // None of the node's is allowed: far is better than not at all.
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
            const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
            workforce.progress({stage, done_bytes.load(), queues.total_bytes(), elapsed.count()});
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
