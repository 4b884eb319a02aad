#include "vmm/bench/migrate_plot.hpp"

#include <algorithm>

#include "kvm/host/format.hpp"
#include "vmm/bench/plot_parts.hpp"
#include "vmm/bench/table.hpp"

namespace vmm::bench {

namespace {

/// A label in three lines.
std::string bar_name(const MigrateCase& each) {
    return vmm::format("\"{}\\n{}, {}\\n{}, {}{}\"", to_string(each.mode), vmm::to_string(each.page_size), each.vcpus,
                       to_string(each.link), each.streams, each.fill == MigrateFill::kNone ? ", none" : "");
}

/// One bar: name, median, least, most, text.
std::string downtime_line(const MigrateResult& result) {
    const auto downtime = result.statistics(MigrateFigure::kDowntime);
    if (!downtime) {
        return "";
    }
    return vmm::format("{} {:.6g} {:.6g} {:.6g} \"{}\"\n", bar_name(result.of), downtime->median / kMilliseconds,
                       downtime->least / kMilliseconds, downtime->most / kMilliseconds,
                       format_seconds(downtime->median));
}

/// One group: name, p99 before, p99 after.
std::string lateness_line(const MigrateResult& result) {
    const auto before = result.statistics(MigrateFigure::kLateP99Before);
    const auto after = result.statistics(MigrateFigure::kLateP99);
    if (!before || !after) {
        return "";
    }
    constexpr double kLeast = 1e-8; // A logarithm has no zero.
    return vmm::format("{} {:.6g} {:.6g}\n", bar_name(result.of), std::max(before->median, kLeast) / kMilliseconds,
                       std::max(after->median, kLeast) / kMilliseconds);
}

} // namespace

std::string plot_script(const MigrateResults& results, PlotFormat format) {
    const PlotBlock downtime = plot_block(results.cases, downtime_line);
    const PlotBlock late = plot_block(results.cases, lateness_line);
    if (downtime.bars == 0 && late.bars == 0) {
        return "";
    }
    std::string script = bars_head(downtime.bars + late.bars, format);
    script += "$downtime << END\n" + downtime.lines + "END\n$late << END\n" + late.lines + "END\n";
    script += vmm::format("set multiplot layout 1,{} title \"A guest of {} migrates\" font ',13'\n",
                          (downtime.bars != 0 ? 1 : 0) + (late.bars != 0 ? 1 : 0),
                          format_bytes(results.settings.memory_bytes));
    if (downtime.bars != 0) {
        script += vmm::format("set title \"Time for which it stands still (least to most)\"\nset xrange [-0.6:{}.6]\n"
                              "plot $downtime using 0:2:(0.7):xtic(1) with boxes lc rgb '#8da0cb' notitle, "
                              "'' using 0:2:3:4 with yerrorbars pt -1 lc rgb '#444444' notitle, "
                              "'' using 0:4:5 with labels offset 0,0.8 notitle\n",
                              downtime.bars - 1);
    }
    if (late.bars != 0) {
        script += vmm::format("set title \"How late 99 of 100 of its beats are (1 kHz)\"\nset xrange [-0.6:{}.6]\n"
                              "set style histogram clustered gap 1\n"
                              "plot $late using 2:xtic(1) title 'the second before' lc rgb '#66c2a5', "
                              "'' using 3 title 'the first second after' lc rgb '#fc8d62'\n",
                              late.bars - 1);
    }
    return script + "unset multiplot\n";
}

} // namespace vmm::bench
