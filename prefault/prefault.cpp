#include "prefault/prefault.hpp"

#include <algorithm>
#include <cassert>
#include <chrono>
#include <utility>
#include <vector>

#include "prefault/host_populate.hpp"
#include "prefault/parallel.hpp"
#include "prefault/plan.hpp"

namespace vmm::prefault {

namespace {

constexpr std::uint64_t kSmallPage = 4 * kKiB;
/// One pass finds what a mapping smaller than expected left out, a second one what was taken away meanwhile.
constexpr unsigned kMostTopUps = 2;

std::vector<GuestRange> ranges_of(const GuestMemory& memory) {
    std::vector<GuestRange> ranges;
    for (const MemoryRegion& region : memory.regions()) {
        ranges.push_back(region.range);
    }
    return ranges;
}

class Stopwatch {
  public:
    /// Seconds since the last lap, or since construction.
    double lap() {
        const auto now = Clock::now();
        const std::chrono::duration<double> elapsed = now - std::exchange(start_, now);
        return elapsed.count();
    }

  private:
    using Clock = std::chrono::steady_clock;
    Clock::time_point start_ = Clock::now();
};

} // namespace

std::string_view to_string(Scope scope) noexcept {
    switch (scope) {
    case Scope::kNone:
        return "none";
    case Scope::kHost:
        return "host";
    case Scope::kAll:
        return "all";
    }
    return "?";
}

std::string_view to_string(Method method) noexcept {
    return method == Method::kTouch ? "touch" : "none";
}

SecondLevelFiller::SecondLevelFiller(kvm::Vm& vm, const Place& place, std::span<const kvm_cpuid_entry2> cpuid,
                                     unsigned workers)
    : vm_stats_(vm.stats()), kind_(place.kind), scratch_(vm, place.memslot, place.scratch) {
    for (unsigned index = 0; index < workers; ++index) {
        dummies_.emplace_back(vm, place.first_vcpu_id + index, cpuid, scratch_);
    }
    scratch_mappings_ = count_scratch_mappings();
}

void SecondLevelFiller::fill(const GuestMemory& memory, Report& report, const std::stop_token& stop) {
    scratch_.refresh();
    touch_scratch(stop);
    const std::vector<GuestRange> ranges = ranges_of(memory);
    report.method = Method::kTouch;
    report.workers = static_cast<unsigned>(dummies_.size());
    bool finished = touch_all(ranges, proven_mapping_bytes(memory), stop);
    report.mapped = mapped_guest_memory();
    while (finished && report.mapped.bytes() < memory.size_bytes() && report.top_up_passes < kMostTopUps) {
        ++report.top_up_passes;
        finished = touch_all(ranges, std::vector<std::uint64_t>(ranges.size(), kSmallPage), stop);
        report.mapped = mapped_guest_memory();
    }
    report.complete = finished && report.mapped.bytes() >= memory.size_bytes();
}

void SecondLevelFiller::touch_scratch(const std::stop_token& stop) {
    // "Every page of every memslot", ours too, so that what it adds to KVM's totals is known. On shadow paging only the
    // stub's page: the tables are write-protected there, and writing to them makes KVM drop what it has shadowed.
    GuestRange range = scratch_.range();
    if (kind_ == SecondLevelKind::kShadow) {
        range.size = kSmallPage;
    }
    run_in_parallel(1, "prefault", [&](unsigned index) { dummies_[index].touch(range, kSmallPage, stop); });
}

std::uint64_t SecondLevelFiller::count_scratch_mappings() {
    const std::uint64_t all = scratch_.range().size / kSmallPage;
    if (kind_ != SecondLevelKind::kShadow) {
        return all;
    }
    // Here KVM maps some neighbours of the stub's page along with it; how many, only its counters say.
    const std::uint64_t before = mapped_pages(vm_stats_).pages_4k;
    touch_scratch({});
    const std::uint64_t after = mapped_pages(vm_stats_).pages_4k;
    return std::clamp<std::uint64_t>(after > before ? after - before : 0, 1, all);
}

bool SecondLevelFiller::touch_all(std::span<const GuestRange> ranges, std::span<const std::uint64_t> strides,
                                  const std::stop_token& stop) {
    std::uint64_t total = 0;
    for (const GuestRange& range : ranges) {
        total += range.size;
    }
    const auto workers = static_cast<unsigned>(dummies_.size());
    const std::uint64_t largest_stride = *std::max_element(strides.begin(), strides.end());
    const Plan plan(ranges, Plan::chunk_bytes_for(total, workers, largest_stride));
    ChunkQueue queue(plan);
    const auto useful = static_cast<unsigned>(std::clamp<std::size_t>(plan.chunk_count(), 1, workers));
    run_in_parallel(useful, "prefault", [&](unsigned index) {
        while (!stop.stop_requested()) {
            const auto chunk = queue.take();
            if (!chunk) {
                return;
            }
            const auto range = std::find_if(ranges.begin(), ranges.end(),
                                            [&](const GuestRange& candidate) { return candidate.contains(*chunk); });
            const std::uint64_t stride = strides[static_cast<std::size_t>(range - ranges.begin())];
            if (!dummies_[index].touch(*chunk, stride, stop)) {
                return;
            }
        }
    });
    return !stop.stop_requested();
}

MappedPages SecondLevelFiller::mapped_guest_memory() const {
    MappedPages mapped = mapped_pages(vm_stats_);
    mapped.pages_4k -= std::min(mapped.pages_4k, scratch_mappings_);
    return mapped;
}

Report run(const GuestMemory& memory, SecondLevelFiller* filler, const Options& options, const std::stop_token& stop) {
    assert(options.workers > 0);
    Report report;
    report.scope = options.scope;
    const std::vector<GuestRange> ranges = ranges_of(memory);
    if (options.scope == Scope::kNone) {
        pin_memory(memory, ranges, options.pin); // Each page when it comes to exist.
        report.complete = true;
        return report;
    }
    report.workers = options.workers;
    Stopwatch total;
    Stopwatch step;
    const bool populated = populate_host(memory, ranges, options.workers, stop);
    report.host_seconds = step.lap();
    if (populated) {
        pin_memory(memory, ranges, options.pin);
        report.pin_seconds = step.lap();
        report.complete = true;
        if (options.scope == Scope::kAll) {
            assert(filler != nullptr);
            filler->fill(memory, report, stop);
            report.second_level_seconds = step.lap();
        }
    }
    report.total_seconds = total.lap();
    return report;
}

} // namespace vmm::prefault
