#include "vmm/bench/table.hpp"

#include "kvm/host/format.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace vmm::bench {

namespace {

/// The cells of one shape, in the order of the results.
using Shape = std::vector<const CellResult*>;

std::vector<Shape> shapes_of(const Results& results) {
    std::vector<Shape> shapes;
    for (const CellResult& result : results.cells) {
        const auto found = std::ranges::find_if(
            shapes, [&](const Shape& shape) { return same_shape(shape.front()->cell, result.cell); });
        if (found == shapes.end()) {
            shapes.push_back({&result});
        } else {
            found->push_back(&result);
        }
    }
    return shapes;
}

bool varies_in_workers(const Shape& shape) {
    const Cell* first = nullptr;
    for (const CellResult* result : shape) {
        if (uses_workers(result->cell.method)) {
            if (first != nullptr && first->workers != result->cell.workers) {
                return true;
            }
            first = &result->cell;
        }
    }
    return false;
}

std::string time_text(const CellResult& result, Figure figure, bool spread) {
    const auto statistics = result.statistics(figure);
    if (!statistics) {
        return "-";
    }
    std::string text = format_seconds(statistics->median);
    if (spread && result.samples.size() > 1) {
        text += vmm::format(" [{} .. {}]", format_seconds(statistics->least), format_seconds(statistics->most));
    }
    return text;
}

std::string count_text(const CellResult& result, Figure figure) {
    const auto count = result.median_of(figure);
    return count ? format_count(*count) : "-";
}

std::string factor_text(double factor) {
    return factor >= 100  ? vmm::format("{:.0f}", factor)
           : factor >= 10 ? vmm::format("{:.1f}", factor)
                          : vmm::format("{:.2f}", factor);
}

std::string row(const CellResult& result, bool show_workers) {
    const auto over = result.median_of(Figure::kFirstOverSteady);
    // The reader reads before the first pass, as a prefault runs before it, so its time is shown in the same column.
    const Figure before = result.cell.method == Method::kReader ? Figure::kReader : Figure::kPrefault;
    return vmm::format("  {:<19} {:>8} {:>29} {:>8} {:>7} {:>8} {:>9} {:>9}\n", method_name(result.cell, show_workers),
                       uses_workers(result.cell.method) || result.cell.method == Method::kReader
                           ? time_text(result, before, false)
                           : "-",
                       time_text(result, Figure::kFirst, true), time_text(result, Figure::kSteady, false),
                       over ? factor_text(*over) : "-", time_text(result, Figure::kTotal, false),
                       count_text(result, Figure::kFaults), count_text(result, Figure::kExits));
}

/// "touch against none: first pass 12.3 times as fast [10.1 .. 14.0], in total 1.20 times"
std::string against(const CellResult& result, const CellResult& base, bool show_workers) {
    const std::vector<double> ours = result.values(Figure::kFirst);
    const std::vector<double> theirs = base.values(Figure::kFirst);
    const std::vector<double> our_total = result.values(Figure::kTotal);
    const std::vector<double> their_total = base.values(Figure::kTotal);
    if (ours.empty() || theirs.empty() || our_total.empty() || their_total.empty() || median(ours) <= 0) {
        return "";
    }
    const auto factor = [](const std::vector<double>& slow, const std::vector<double>& fast) {
        const Interval interval = ratio_interval(fast, slow, 0.95);
        return vmm::format("{} times as fast [{} .. {}]", factor_text(median(slow) / median(fast)),
                           factor_text(interval.low), factor_text(interval.high));
    };
    return vmm::format("  {} against {}: first pass {}, in total {}\n", method_name(result.cell, show_workers),
                       method_name(base.cell), factor(theirs, ours), factor(their_total, our_total));
}

/// "pool against touch: ready after 31 ms instead of 310 ms, 0.10 times [0.08 .. 0.12]"
std::string readiness(const CellResult& result, const CellResult& base, bool show_workers) {
    const std::vector<double> ours = result.values(Figure::kReady);
    const std::vector<double> theirs = base.values(Figure::kReady);
    if (ours.empty() || theirs.empty() || median(theirs) <= 0) {
        return "";
    }
    const Interval interval = ratio_interval(theirs, ours, 0.95);
    return vmm::format(
        "  {} against {}: ready after {} instead of {}, {} times [{} .. {}]\n", method_name(result.cell, show_workers),
        method_name(base.cell, show_workers), format_seconds(median(ours)), format_seconds(median(theirs)),
        factor_text(median(ours) / median(theirs)), factor_text(interval.low), factor_text(interval.high));
}

std::string conclusions(const Shape& shape, bool show_workers) {
    std::string text;
    for (const CellResult* pool : shape) {
        for (const CellResult* base : shape) {
            const bool fills = base->cell.contender == Contender::kVmm && fills_second_level(base->cell.method) &&
                               base->cell.method != Method::kPool;
            if (pool->cell.method == Method::kPool && fills && pool->cell.workers == base->cell.workers) {
                text += readiness(*pool, *base, show_workers);
            }
        }
    }
    unsigned most_workers = 0;
    for (const CellResult* result : shape) {
        most_workers = std::max(most_workers, uses_workers(result->cell.method) ? result->cell.workers : 0);
    }
    for (const CellResult* base : shape) {
        if (base->cell.method != Method::kNone && base->cell.method != Method::kReader) {
            continue;
        }
        for (const CellResult* result : shape) {
            const bool ours = result->cell.contender == Contender::kVmm && fills_second_level(result->cell.method) &&
                              result->cell.workers == most_workers;
            if (ours) {
                text += against(*result, *base, show_workers);
            }
        }
    }
    // This is the time at which the guest may start. It contains the start of the program itself.
    for (const CellResult* base : shape) {
        if (base->cell.contender != Contender::kQemu || base->cell.method != Method::kHost) {
            continue;
        }
        for (const CellResult* result : shape) {
            const auto ours = result->median_of(Figure::kReady);
            const auto theirs = base->median_of(Figure::kReady);
            if (result->cell.contender == Contender::kVmm && uses_workers(result->cell.method) && ours && theirs &&
                *theirs > 0) {
                const auto our_part = result->median_of(Figure::kPrefault);
                const auto their_part = base->median_of(Figure::kPrefault);
                const std::string parts =
                    our_part && their_part && *their_part > 0
                        ? vmm::format("; populating alone {} instead of {} ({:.2f})", format_seconds(*our_part),
                                      format_seconds(*their_part), *our_part / *their_part)
                        : "";
                text += vmm::format("  {} against {}: memory ready after {} instead of {} ({:.2f}){}\n",
                                    method_name(result->cell, show_workers), method_name(base->cell),
                                    format_seconds(*ours), format_seconds(*theirs), *ours / *theirs, parts);
            }
        }
    }
    return text;
}

std::string shape_table(const Shape& shape) {
    std::size_t runs = 0;
    for (const CellResult* result : shape) {
        runs = std::max(runs, result->samples.size());
    }
    const bool show_workers = varies_in_workers(shape);
    std::string text = vmm::format("{} ({} run{}: median [least .. most])\n", shape_name(shape.front()->cell), runs,
                                   runs == 1 ? "" : "s");
    text += vmm::format("  {:<19} {:>8} {:>29} {:>8} {:>7} {:>8} {:>9} {:>9}\n", "method", "prefault", "first pass",
                        "steady", "f/s", "total", "faults", "exits");
    for (const CellResult* result : shape) {
        if (!result->samples.empty()) {
            text += row(*result, show_workers);
        }
    }
    return text + conclusions(shape, show_workers) + "\n";
}

} // namespace

std::string format_seconds(double seconds) {
    struct Unit {
        double size;
        const char* name;
    };
    for (const Unit unit : {Unit{1, "s"}, Unit{1e-3, "ms"}, Unit{1e-6, "us"}}) {
        const double value = seconds / unit.size;
        if (value >= 0.9995) {
            return value >= 99.95   ? vmm::format("{:.0f} {}", value, unit.name)
                   : value >= 9.995 ? vmm::format("{:.1f} {}", value, unit.name)
                                    : vmm::format("{:.2f} {}", value, unit.name);
        }
    }
    return seconds == 0 ? "0" : vmm::format("{:.2f} us", seconds / 1e-6);
}

std::string format_count(double count) {
    std::string digits = vmm::format("{:.0f}", count);
    for (std::size_t at = digits.size(); at > 3 && digits[at - 4] != '-';) {
        at -= 3;
        digits.insert(at, ",");
    }
    return digits;
}

std::string to_table(const Results& results) {
    std::string text;
    for (const Shape& shape : shapes_of(results)) {
        text += shape_table(shape);
    }
    text += "prefault: before the guest starts, host side, pin and second level (of reader: one vCPU reading every "
            "page)\nf/s: first pass over steady pass; total: prefault and first pass; faults: second-level, by KVM's "
            "count\n";
    for (const CellResult& result : results.cells) {
        if (!result.failure.empty()) {
            text += vmm::format("{} {}: {}\n", result.left_out ? "LEFT OUT" : "FAILED", to_string(result.cell),
                                result.failure);
        }
    }
    text += vmm::format("harness: {:.2f}% of the time of what it measured", results.harness.share() * 100);
    if (results.harness.empty_run_seconds) {
        text += vmm::format("; starting, ending and reading a run takes {}, which no figure contains",
                            format_seconds(*results.harness.empty_run_seconds));
    }
    text += '\n';
    if (!results.complete) {
        text += results.any_failed() ? "NOT COMPLETE: see what failed\n"
                                     : "NOT COMPLETE: stopped, out of time, or something was left out\n";
    }
    return text;
}

} // namespace vmm::bench
