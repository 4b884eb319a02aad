#include "prefault/prefault.hpp"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <chrono>
#include <utility>

#include "prefault/host/crew.hpp"
#include "prefault/host/populate.hpp"

namespace vmm::prefault {

namespace {

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

std::vector<GuestRange> ranges_of(std::span<const PlacedRange> placed) {
    std::vector<GuestRange> ranges;
    for (const PlacedRange& piece : placed) {
        ranges.push_back(piece.range);
    }
    return ranges;
}

/// One run: the stages share what it is about.
class Run {
  public:
    Run(const Target& target, const Options& options, const std::stop_token& stop)
        : target_(target), options_(options), stop_(stop),
          ranges_(options.ranges.empty() ? target.placement : intersection(target.placement, options.ranges)) {
        assert(options.workers > 0 && !ranges_.empty());
        workforce_.workers = options.workers;
        if (options.scope == Scope::kAll) {
            assert(target.filler != nullptr);
            workforce_.workers = std::min(options.workers, target.filler->workers());
        }
        workforce_.cpus = options.cpus;
        workforce_.node_cpus = target.node_cpus;
        workforce_.low_priority = options.background;
        workforce_.progress = options.progress;
        report_.scope = options.scope;
        report_.ranges = options.ranges;
        report_.bytes = total_bytes(ranges_);
        report_.workers = options.scope == Scope::kNone ? 0 : workforce_.workers;
    }

    Report execute() {
        Stopwatch total;
        // Long-term pins must stand before the second level is filled, because pinning may move pages; and they are
        // made of large pieces. So these runs have stages, in the background, too.
        const bool piecewise =
            options_.background && options_.scope == Scope::kAll && target_.pins.kind() != Pin::kLongterm;
        report_.complete = piecewise ? in_pieces() : in_stages();
        report_.complete = report_.complete && (!options_.smm || options_.scope != Scope::kAll || fill_smm());
        report_.total_seconds = total.lap();
        return std::move(report_);
    }

  private:
    bool in_pieces() {
        const bool pin_last = pins_what_exists();
        return (pin_last || pin()) && fill_piecewise() && (!pin_last || pin());
    }

    bool in_stages() {
        const bool populate = options_.scope != Scope::kNone || target_.pins.kind() == Pin::kLongterm;
        const bool pin_last = populate && pins_what_exists();
        return (pin_last || pin()) && (!populate || populate_host_side()) && (!pin_last || pin()) &&
               (options_.scope != Scope::kAll || fill());
    }

    /// A long-term pin is one of pages that exist. What is locked while it is empty takes nothing: each page is locked
    /// when it comes to exist, by the worker that makes it; locking what exists walks it all with one thread. But pages
    /// of a pool cannot be locked on fault: mlock2() would make them all, with one thread (mm/mlock.c, mlock_fixup()).
    [[nodiscard]] bool pins_what_exists() const noexcept {
        return target_.pins.kind() == Pin::kLongterm || is_from_pool(target_.memory.page_size());
    }

    bool populate_host_side() {
        Stopwatch step;
        const bool populated = populate_host(target_.memory, ranges_, workforce_, stop_);
        report_.host_seconds = step.lap();
        return populated;
    }

    bool pin() {
        Stopwatch step;
        const std::vector<GuestRange> ranges = ranges_of(ranges_);
        std::atomic<std::uint64_t> done_bytes{0};
        const bool pinned = target_.pins.add(target_.memory, ranges, workforce_.workers, stop_,
                                             [&](std::uint64_t bytes) { done_bytes.fetch_add(bytes); });
        report_.pin_seconds = step.lap();
        if (workforce_.progress && target_.pins.kind() != Pin::kNone) {
            workforce_.progress(
                {Stage::kPin, pinned ? report_.bytes : done_bytes.load(), report_.bytes, report_.pin_seconds});
        }
        return pinned;
    }

    [[nodiscard]] SecondLevelFiller::Job job() {
        report_.method = target_.method.method;
        report_.method_reason = target_.method.reason;
        static const std::atomic<bool> no_guest{false};
        return {target_.memory,
                ranges_,
                options_.ranges.empty(),
                target_.method.method,
                target_.guest_runs != nullptr ? *target_.guest_runs : no_guest,
                workforce_};
    }

    bool note(FillResult result) {
        report_.mapped = result.mapped;
        report_.top_up_passes = result.top_up_passes;
        report_.proof = result.proof;
        report_.problem = std::move(result.problem);
        return result.proof != Proof::kNone;
    }

    bool fill() {
        Stopwatch step;
        const bool filled = note(target_.filler->fill(job(), stop_));
        report_.second_level_seconds = step.lap();
        return filled;
    }

    bool fill_piecewise() {
        Stopwatch step;
        const SecondLevelFiller::Job whole = job();
        SecondLevelFiller& filler = *target_.filler;
        filler.begin(whole, stop_);
        const std::uint64_t chunk_bytes =
            host_chunk_bytes(target_.memory.page_size(), report_.bytes, workforce_.workers);
        for_each_chunk(ranges_, chunk_bytes, workforce_, Stage::kSecondLevel, "prefault", stop_,
                       [&](unsigned worker, GuestRange chunk, const std::stop_token& stop) {
                           populate_chunk(target_.memory, chunk, stop);
                           return filler.fill_chunk(whole, worker, chunk, stop);
                       });
        const bool filled = note(filler.verify(whole, stop_));
        report_.second_level_seconds = step.lap();
        return filled;
    }

    bool fill_smm() {
        Stopwatch step;
        const FillResult result = target_.filler->fill_smm(job(), stop_);
        report_.smm_seconds = step.lap();
        report_.smm_mapped = result.mapped;
        report_.top_up_passes += result.top_up_passes;
        if (report_.problem.empty()) {
            report_.problem = result.problem;
        }
        return result.proof != Proof::kNone;
    }

    const Target& target_;
    const Options& options_;
    const std::stop_token& stop_;
    std::vector<PlacedRange> ranges_;
    Workforce workforce_;
    Report report_;
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

Report run(const Target& target, const Options& options, const std::stop_token& stop) {
    const Options all = resolved(options);
    return Run(target, all, stop).execute();
}

} // namespace vmm::prefault
