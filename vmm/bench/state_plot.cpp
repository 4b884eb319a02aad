#include "vmm/bench/state_plot.hpp"

#include <algorithm>

#include "kvm/host/format.hpp"
#include "vmm/bench/plot_parts.hpp"
#include "vmm/bench/table.hpp"

namespace vmm::bench {

namespace {

/// A label in two lines.
std::string bar_name(const StateCase& each) {
    const std::string first = each.mode ? std::string(vmm::to_string(*each.mode)) : std::string();
    const std::string name = each.scenario == Scenario::kClones ? "clones, " + first
                             : each.mode                        ? first
                                                                : std::string(to_string(each.scenario));
    return "\"" + name + "\\n" + std::string(vmm::to_string(each.page_size)) + "\"";
}

bool is_drawn_as_ready(Scenario scenario) {
    return scenario == Scenario::kCold || scenario == Scenario::kBareRead || scenario == Scenario::kRestore ||
           scenario == Scenario::kClones;
}

/// One bar: name, the part of populating, the rest, the sum, its least, its most, text.
std::string ready_line(const StateResult& result) {
    const bool is_bare = result.of.scenario == Scenario::kBareRead;
    const auto main = result.statistics(is_bare ? StateFigure::kRead : StateFigure::kReady);
    if (!main) {
        return "";
    }
    const auto populate = result.statistics(StateFigure::kPopulate);
    const double below = populate ? populate->median : 0;
    return vmm::format("{} {:.6g} {:.6g} {:.6g} {:.6g} {:.6g} \"{}\"\n", bar_name(result.of), below / kMilliseconds,
                       main->median / kMilliseconds, (below + main->median) / kMilliseconds,
                       (below + main->least) / kMilliseconds, (below + main->most) / kMilliseconds,
                       format_seconds(below + main->median));
}

/// One group: name, p50, p99, most.
std::string late_line(const StateResult& result) {
    const auto p50 = result.statistics(StateFigure::kLateP50);
    const auto p99 = result.statistics(StateFigure::kLateP99);
    const auto most = result.statistics(StateFigure::kLateMax);
    if (!p50 || !p99 || !most) {
        return "";
    }
    constexpr double kLeast = 1e-8; // a logarithm has no zero
    return vmm::format("{} {:.6g} {:.6g} {:.6g}\n", bar_name(result.of), std::max(p50->median, kLeast) / kMilliseconds,
                       std::max(p99->median, kLeast) / kMilliseconds, std::max(most->median, kLeast) / kMilliseconds);
}

} // namespace

std::string plot_script(const StateResults& results, PlotFormat format) {
    const PlotBlock ready = plot_block(results.cases, [](const StateResult& result) {
        return is_drawn_as_ready(result.of.scenario) ? ready_line(result) : std::string();
    });
    const PlotBlock late = plot_block(results.cases, late_line);
    if (ready.bars == 0 && late.bars == 0) {
        return "";
    }
    std::string script = bars_head(ready.bars + late.bars, format);
    script += "$ready << END\n" + ready.lines + "END\n$late << END\n" + late.lines + "END\n";
    script +=
        vmm::format("set multiplot layout 1,{} title \"A guest of {} from its snapshot\" font ',13'\n",
                    (ready.bars != 0 ? 1 : 0) + (late.bars != 0 ? 1 : 0), format_bytes(results.settings.memory_bytes));
    if (ready.bars != 0) {
        script += vmm::format("set title \"Time until it is ready (least to most)\"\nset xrange [-0.6:{}.6]\n"
                              "plot $ready using 0:4:(0.7):xtic(1) with boxes lc rgb '#8da0cb' notitle, "
                              "'' using 0:4:5:6 with yerrorbars pt -1 lc rgb '#444444' notitle, "
                              "'' using 0:6:7 with labels offset 0,0.8 notitle\n",
                              ready.bars - 1);
    }
    if (late.bars != 0) {
        script += vmm::format("set title \"How late its beats are (1 kHz)\"\nset xrange [-0.6:{}.6]\n"
                              "set style histogram clustered gap 1\n"
                              "plot $late using 2:xtic(1) title 'half of them' lc rgb '#66c2a5', '' using 3 title '99 "
                              "of 100' lc rgb '#8da0cb', '' using 4 title 'all' lc rgb '#fc8d62'\n",
                              late.bars - 1);
    }
    return script + "unset multiplot\n";
}

} // namespace vmm::bench
