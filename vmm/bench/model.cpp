#include "vmm/bench/model.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <thread>

#include "kvm/host/format.hpp"
#include "kvm/host/stopwatch.hpp"
#include "prefault/host/cpu_list.hpp"
#include "vmm/bench/table.hpp"

namespace vmm::bench {

namespace {

constexpr double kBytesPerGib = 1024.0 * 1024 * 1024;

double gib_of(std::uint64_t bytes) {
    return static_cast<double>(bytes) / kBytesPerGib;
}

/// Points of seconds over GiB.
struct Points {
    std::vector<double> gib;
    std::vector<double> seconds;

    void add(double x, double y) {
        gib.push_back(x);
        seconds.push_back(y);
    }
};

/// The slope if there are several sizes, else the mean cost. It is never negative.
Line cost_line(const Points& points) {
    const Line line = fit_line(points.gib, points.seconds);
    if (line.slope > 0) {
        return line;
    }
    const std::size_t last = points.gib.size() - 1;
    return {0, points.seconds[last] / points.gib[last], 0};
}

/// One figure of one method, by number of workers.
class Fit {
  public:
    void add(unsigned workers, double gib, double seconds) {
        most_workers_ = std::max(most_workers_, workers);
        by_workers_.emplace_back(workers, gib, seconds);
    }

    [[nodiscard]] std::optional<ParallelCost> cost() const {
        const Points most = points(most_workers_);
        if (most.gib.empty()) {
            return std::nullopt;
        }
        const Line line = cost_line(most);
        ParallelCost cost;
        cost.r2 = line.r2;
        cost.seconds_per_gib = line.slope * most_workers_; // if nothing more is known, all workers are assumed to scale
        const Points one = points(1);
        if (most_workers_ > 1 && !one.gib.empty() && *std::ranges::max_element(one.seconds) >= kLeastTimeForGain) {
            const double speedup =
                std::clamp(cost_line(one).slope / line.slope, 1.0, static_cast<double>(most_workers_));
            cost.gain = std::pow(speedup, 1 / std::log2(most_workers_));
            cost.gain_known = true;
            cost.seconds_per_gib = line.slope * speedup;
        }
        return cost;
    }

  private:
    struct Point {
        unsigned workers;
        double gib;
        double seconds;
        Point(unsigned w, double g, double s) : workers(w), gib(g), seconds(s) {}
    };
    [[nodiscard]] Points points(unsigned workers) const {
        Points points;
        for (const Point& point : by_workers_) {
            if (point.workers == workers) {
                points.add(point.gib, point.seconds);
            }
        }
        return points;
    }

    std::vector<Point> by_workers_;
    unsigned most_workers_ = 0;
};

/// The figures of one page size before the fit.
struct Collected {
    Fit host;
    Fit touch;
    Fit ioctl;
    Fit ioctl_then_touch;
    Fit cold;
    Fit warm;
    Fit after_reader;
    Fit steady;
    Points reader;
    std::vector<double> cold_fault;
    std::vector<double> warm_fault;
};

void collect(Collected& all, const CellResult& result, unsigned cpus) {
    const Cell& cell = result.cell;
    const double gib = gib_of(cell.memory_bytes);
    const auto first = result.median_of(Figure::kFirst);
    const auto steady = result.median_of(Figure::kSteady);
    const auto faults = result.median_of(Figure::kFaults);
    const unsigned at_once = std::min(cell.vcpus, cpus);
    const auto add_second_level = [&](Fit& fit) {
        if (const auto seconds = result.median_of(Figure::kSecondLevel)) {
            fit.add(cell.workers, gib, *seconds);
        }
    };
    if (steady) {
        all.steady.add(at_once, gib, *steady);
    }
    switch (cell.method) {
    case Method::kNone:
    case Method::kHost:
        if (const auto host = result.median_of(Figure::kHost); host && cell.method == Method::kHost) {
            all.host.add(cell.workers, gib, *host);
        }
        if (first && steady) {
            const double extra = std::max(0.0, *first - *steady);
            (cell.method == Method::kNone ? all.cold : all.warm).add(at_once, gib, extra);
            if (faults && *faults > 0) {
                (cell.method == Method::kNone ? all.cold_fault : all.warm_fault).push_back(extra * at_once / *faults);
            }
        }
        break;
    case Method::kTouch:
        add_second_level(all.touch);
        break;
    case Method::kIoctl:
        add_second_level(all.ioctl);
        break;
    case Method::kIoctlThenTouch:
        add_second_level(all.ioctl_then_touch);
        break;
    case Method::kPool: // the time that it saves was spent before
        break;
    case Method::kReader:
        if (const auto reader = result.median_of(Figure::kReader)) {
            all.reader.add(gib, *reader);
        }
        if (first && steady) {
            all.after_reader.add(at_once, gib, std::max(0.0, *first - *steady));
        }
        break;
    }
}

} // namespace

double ParallelCost::seconds(double gib, unsigned workers, bool perfect) const noexcept {
    const double doublings = std::log2(std::max(1U, workers));
    return seconds_per_gib * gib / std::pow(perfect ? 2 : gain, doublings);
}

std::vector<PageCosts> fit_costs(const Results& results) {
    std::vector<PageCosts> costs;
    for (const PageSize page_size : kPageSizes) {
        Collected all;
        bool any = false;
        for (const CellResult& result : results.cells) {
            if (result.cell.page_size == page_size && result.cell.contender == Contender::kVmm &&
                result.cell.order == Order::kSequential && !result.samples.empty()) {
                collect(all, result, results.host.cpus);
                any = true;
            }
        }
        if (!any) {
            continue;
        }
        PageCosts page;
        page.page_size = page_size;
        page.host = all.host.cost();
        page.touch = all.touch.cost();
        page.ioctl = all.ioctl.cost();
        page.ioctl_then_touch = all.ioctl_then_touch.cost();
        page.cold = all.cold.cost();
        page.warm = all.warm.cost();
        page.after_reader = all.after_reader.cost();
        page.steady = all.steady.cost();
        // The gain of the guest's faults is taken from the workers, because they take the same locks.
        for (auto* const faults : {&page.cold, &page.after_reader, &page.warm}) {
            const auto take_gain = [&](const std::optional<ParallelCost>& other) {
                if (*faults && other && other->gain_known) {
                    (*faults)->gain = std::min((*faults)->gain, other->gain);
                    (*faults)->gain_known = true;
                }
            };
            take_gain(page.touch);
            if (faults != &page.warm) {
                take_gain(page.host);
            }
        }
        if (!all.reader.gib.empty()) {
            page.reader_seconds_per_gib = cost_line(all.reader).slope;
        }
        page.seconds_per_cold_fault = all.cold_fault.empty() ? std::nullopt : std::optional(median(all.cold_fault));
        page.seconds_per_warm_fault = all.warm_fault.empty() ? std::nullopt : std::optional(median(all.warm_fault));
        costs.push_back(page);
    }
    return costs;
}

std::optional<Prediction> predict(const PageCosts& costs, Method method, const TargetShape& shape, bool perfect) {
    const double gib = gib_of(shape.memory_bytes);
    const auto of = [&](const std::optional<ParallelCost>& cost) { return cost->seconds(gib, shape.vcpus, perfect); };
    if (!costs.steady) {
        return std::nullopt;
    }
    Prediction prediction{0, costs.steady->seconds(gib, shape.vcpus, true)};
    switch (method) {
    case Method::kNone:
        if (!costs.cold) {
            return std::nullopt;
        }
        prediction.first_seconds += of(costs.cold);
        return prediction;
    case Method::kHost:
        if (!costs.host || !costs.warm) {
            return std::nullopt;
        }
        prediction.prefault_seconds = of(costs.host);
        prediction.first_seconds += of(costs.warm);
        return prediction;
    case Method::kTouch:
    case Method::kIoctl:
    case Method::kIoctlThenTouch: {
        const auto& second_level = method == Method::kTouch   ? costs.touch
                                   : method == Method::kIoctl ? costs.ioctl
                                                              : costs.ioctl_then_touch;
        if (!costs.host || !second_level) {
            return std::nullopt;
        }
        prediction.prefault_seconds = of(costs.host) + of(second_level);
        return prediction;
    }
    case Method::kPool:
        return std::nullopt;
    case Method::kReader:
        if (!costs.reader_seconds_per_gib) {
            return std::nullopt;
        }
        prediction.prefault_seconds = *costs.reader_seconds_per_gib * gib; // only one CPU reads, however many there are
        prediction.first_seconds += costs.after_reader ? of(costs.after_reader) : 0;
        return prediction;
    }
    return std::nullopt;
}

std::string fit_table(const std::vector<PageCosts>& costs) {
    std::string text =
        "What one CPU takes, fitted to the medians (gain: by each doubling of workers; R2: of the fit)\n";
    text += vmm::format("  {:<6} {:<34} {:>12} {:>8} {:>6} {:>12}\n", "pages", "", "for a GiB", "gain", "R2",
                        "for a fault");
    const auto add = [&](const PageCosts& page, const char* what, const std::optional<ParallelCost>& cost,
                         const std::optional<double>& fault) {
        if (cost) {
            const std::string gain = cost->gain_known ? vmm::format("{:.2f}", cost->gain) : "?";
            text +=
                vmm::format("  {:<6} {:<34} {:>12} {:>8} {:>6.3f} {:>12}\n", vmm::to_string(page.page_size), what,
                            format_seconds(cost->seconds_per_gib), gain, cost->r2, fault ? format_seconds(*fault) : "");
        }
    };
    for (const PageCosts& page : costs) {
        add(page, "host side", page.host, std::nullopt);
        add(page, "second level, by touch", page.touch, std::nullopt);
        add(page, "second level, by ioctl", page.ioctl, std::nullopt);
        add(page, "second level, by ioctl and touch", page.ioctl_then_touch, std::nullopt);
        add(page, "the guest's faults", page.cold, page.seconds_per_cold_fault);
        add(page, "the same, host side populated", page.warm, page.seconds_per_warm_fault);
        add(page, "the same, after one vCPU has read", page.after_reader, std::nullopt);
        add(page, "a pass without faults", page.steady, std::nullopt);
        if (page.reader_seconds_per_gib) {
            text += vmm::format("  {:<6} {:<34} {:>12}\n", vmm::to_string(page.page_size), "one vCPU reading",
                                format_seconds(*page.reader_seconds_per_gib));
        }
    }
    return text;
}

std::string model_table(const std::vector<PageCosts>& costs, const Results& results) {
    const double bandwidth_of_cpu =
        results.settings.bandwidth ? *results.settings.bandwidth / std::max(1U, results.host.cpus) : 0;
    std::string text =
        "What larger guests would take with as many CPUs as vCPUs, each as fast as one here. Total: where each\n"
        "doubling of workers halves the time .. where it gains what it gained here. Floor: writing memory once";
    text += bandwidth_of_cpu > 0
                ? vmm::format(",\n{:.2f} GiB/s for each CPU as measured here.\n", bandwidth_of_cpu / kBytesPerGib)
                : ": not measured.\n";
    for (const TargetShape& shape : kTargets) {
        const double floor =
            bandwidth_of_cpu > 0 ? static_cast<double>(shape.memory_bytes) / (bandwidth_of_cpu * shape.vcpus) : 0;
        text += vmm::format("\n{}, {} vCPUs{}\n", format_bytes(shape.memory_bytes), shape.vcpus,
                            floor > 0 ? ", floor " + format_seconds(floor) : "");
        text += vmm::format("  {:<6} {:<11} {:>10} {:>12} {:>26} {:>18}\n", "pages", "method", "prefault", "first pass",
                            "total", "times the floor");
        for (const PageCosts& page : costs) {
            for (const Method method : kMethods) {
                const auto best = predict(page, method, shape, true);
                const auto as_here = predict(page, method, shape, false);
                if (!best || !as_here) {
                    continue;
                }
                text += vmm::format(
                    "  {:<6} {:<11} {:>10} {:>12} {:>26} {:>18}\n", vmm::to_string(page.page_size), to_string(method),
                    format_seconds(best->prefault_seconds), format_seconds(best->first_seconds),
                    format_seconds(best->total()) + " .. " + format_seconds(as_here->total()),
                    floor > 0 ? vmm::format("{:.1f} .. {:.1f}", best->total() / floor, as_here->total() / floor) : "-");
            }
        }
    }
    return text;
}

double measure_bandwidth(const std::stop_token& stop) {
    constexpr std::size_t kBytesEach = 128 << 20; // far more than any cache's share
    constexpr int kPasses = 5;
    const std::size_t threads = std::min<std::size_t>(prefault::usable_cpu_list().size(), 64);
    std::vector<std::vector<char>> buffers(threads);
    for (auto& buffer : buffers) {
        if (stop.stop_requested()) {
            return 0;
        }
        buffer.resize(kBytesEach); // This zeroes the memory, and so touches it.
    }
    double best = 0;
    for (int pass = 0; pass < kPasses && !stop.stop_requested(); ++pass) {
        const auto started = std::chrono::steady_clock::now();
        {
            std::vector<std::jthread> workers;
            for (auto& buffer : buffers) {
                workers.emplace_back([&buffer, pass] {
                    std::memset(buffer.data(), pass + 1, kBytesEach);
                    // The compiler must not drop writes that nobody reads.
                    std::atomic_signal_fence(std::memory_order_seq_cst);
                });
            }
        }
        best = std::max(best, static_cast<double>(threads * kBytesEach) / seconds_since(started));
    }
    return best;
}

} // namespace vmm::bench
