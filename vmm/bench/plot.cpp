#include "vmm/bench/plot.hpp"

#include <algorithm>
#include <fstream>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "vmm/bench/child.hpp"
#include "vmm/bench/run.hpp"
#include "vmm/bench/table.hpp"

namespace vmm::bench {

namespace {

constexpr const char* kProgram = "gnuplot";
constexpr unsigned kBarWidth = 92; // pixels, including the space beside it
constexpr unsigned kPanelHeight = 480;

struct Panel {
    std::string heading; ///< empty: none
    Cell shape;
    std::vector<const CellResult*> bars;
    double highest = 0; ///< seconds
};

bool is_larger(const Cell& one, const Cell& other) {
    return one.memory_bytes != other.memory_bytes ? one.memory_bytes > other.memory_bytes : one.vcpus > other.vcpus;
}

/// One shape for each page size: the largest one.
std::vector<Panel> panels_of(const Results& results, const std::string& heading) {
    std::vector<Panel> panels;
    for (const CellResult& result : results.cells) {
        const auto most = result.statistics(Figure::kTotal);
        if (!most) {
            continue;
        }
        auto panel = std::ranges::find_if(
            panels, [&](const Panel& each) { return each.shape.page_size == result.cell.page_size; });
        if (panel == panels.end()) {
            panel = panels.insert(panels.end(), Panel{heading, result.cell, {}, 0});
        } else if (!same_shape(panel->shape, result.cell)) {
            if (!is_larger(result.cell, panel->shape)) {
                continue;
            }
            *panel = Panel{heading, result.cell, {}, 0};
        }
        // Only the largest number of workers is shown.
        const auto same = std::find_if(panel->bars.begin(), panel->bars.end(), [&](const CellResult* bar) {
            return bar->cell.method == result.cell.method && bar->cell.contender == result.cell.contender;
        });
        if (same == panel->bars.end()) {
            panel->bars.push_back(&result);
        } else if (result.cell.workers > (*same)->cell.workers) {
            *same = &result;
        }
    }
    for (Panel& panel : panels) {
        for (const CellResult* bar : panel.bars) {
            panel.highest = std::max(panel.highest, bar->statistics(Figure::kTotal)->most);
        }
    }
    return panels;
}

std::string panel_title(const Cell& shape) {
    const std::string name = shape_name(shape);
    return shape.page_size == PageSize::kThp ? "transparent huge pages" + name.substr(name.find(',')) : name;
}

/// A label in two lines, for people who do not know the names of methods.
std::string bar_name(const Cell& cell) {
    if (cell.contender != Contender::kVmm) {
        const std::string name = cell.contender == Contender::kQemu ? "QEMU" : "command";
        return name + (cell.method == Method::kHost ? "\nprealloc" : "\n ");
    }
    switch (cell.method) {
    case Method::kNone:
        return "no\nprefault";
    case Method::kHost:
        return "host side\nonly";
    case Method::kTouch:
        return "both sides\n(touch)";
    case Method::kIoctl:
        return "both sides\n(ioctl)";
    case Method::kIoctlThenTouch:
        return "both sides\n(ioctl, touch)";
    case Method::kPool:
        return "pool";
    case Method::kReader:
        return "one vCPU\nreads first";
    }
    return "";
}

/// One bar: name, host side, second level, reading, first pass, total, least, most, text.
std::string bar_line(const CellResult& bar, double unit) {
    const double prefault = bar.median_of(Figure::kPrefault).value_or(0);
    const double second_level = bar.median_of(Figure::kSecondLevel).value_or(0);
    const double reader = bar.median_of(Figure::kReader).value_or(0);
    const double first = bar.median_of(Figure::kFirst).value_or(0);
    const Statistics total = *bar.statistics(Figure::kTotal);
    const auto faults = bar.median_of(Figure::kFaults);
    const double host = std::max(0.0, prefault - second_level);
    std::string label = format_seconds(total.median);
    label += faults ? vmm::format("\n{} fault{}", format_count(*faults), *faults == 1 ? "" : "s") : "";
    const auto escaped = [](std::string text) {
        for (std::size_t at = 0; (at = text.find('\n', at)) != std::string::npos;) {
            text.replace(at, 1, "\\n");
        }
        return "\"" + text + "\"";
    };
    return vmm::format("{} {:.6g} {:.6g} {:.6g} {:.6g} {:.6g} {:.6g} {:.6g} {}\n", escaped(bar_name(bar.cell)),
                       host / unit, second_level / unit, reader / unit, first / unit, total.median / unit,
                       total.least / unit, total.most / unit, escaped(label));
}

/// Seconds in a unit of the panel's scale.
double unit_of(const Panel& panel) {
    return panel.highest < 0.5 ? 1e-3 : 1;
}

/// The text between double quotes of gnuplot.
std::string quoted(const std::string& text) {
    std::string safe;
    for (const char c : text) {
        if (c == '"' || c == '\\') {
            safe += '\\';
        }
        safe += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
    }
    return safe;
}

/// Draws one panel with the block of data $bars`number`. The heading of a row is wider than a panel, and its first
/// panel draws it.
std::string panel_commands(const Panel& panel, std::size_t number, bool is_first_of_row) {
    const double unit = unit_of(panel);
    const double top = std::max(panel.highest, 1e-6) * 1.25 / unit;
    std::string script = "unset label\n";
    if (is_first_of_row && !panel.heading.empty()) {
        script +=
            vmm::format("set label 1 \"{}\" at graph 0, graph 1 left offset 0,2.4 noenhanced\n", quoted(panel.heading));
    }
    script +=
        vmm::format("set title \"{}{}\" noenhanced\nset ylabel \"{}\"\nset yrange [0:{:.6g}]\nset xrange [-0.6:{}.6]\n",
                    panel.heading.empty() ? "" : "\\n", panel_title(panel.shape), unit < 1 ? "milliseconds" : "seconds",
                    top, panel.bars.size() - 1);
    script += vmm::format(
        "plot $bars{0} using 2:xtic(1) title 'host memory populated' lc rgb '#8da0cb', '' using 3 title 'second "
        "level filled' lc rgb '#66c2a5', '' using 4 title 'one vCPU reads' lc rgb '#e5c494', '' using 5 title "
        "'first pass of the guest' lc rgb '#fc8d62', '' using 0:7:(0):($8-$7) notitle with vectors heads size "
        "screen 0.003,90 lc rgb '#444444', '' using 0:8:9 with labels offset 0,1.7 notitle\n",
        number);
    return script;
}

} // namespace

std::optional<PlotFormat> plot_format(const std::string& path) {
    return path.ends_with(".svg")   ? std::optional(PlotFormat::kSvg)
           : path.ends_with(".png") ? std::optional(PlotFormat::kPng)
                                    : std::nullopt;
}

std::string plot_script(const Results& results, PlotFormat format) {
    return plot_script({PlotRow{"", &results}}, format);
}

std::string plot_script(const std::vector<PlotRow>& rows, PlotFormat format) {
    std::vector<std::vector<Panel>> drawn;
    for (const PlotRow& row : rows) {
        if (auto panels = panels_of(*row.results, row.title); !panels.empty()) {
            drawn.push_back(std::move(panels));
        }
    }
    if (drawn.empty()) {
        return "";
    }
    std::size_t bars = 0;
    std::size_t runs = 0;
    std::size_t columns = 0;
    for (const std::vector<Panel>& panels : drawn) {
        columns = std::max(columns, panels.size());
        for (const Panel& panel : panels) {
            bars = std::max(bars, panel.bars.size());
            for (const CellResult* bar : panel.bars) {
                runs = std::max(runs, bar->samples.size());
            }
        }
    }
    const std::size_t width = std::max<std::size_t>(columns * std::max<std::size_t>(bars * kBarWidth + 90, 360), 860);
    const std::size_t height = drawn.size() * kPanelHeight;
    std::string script =
        format == PlotFormat::kSvg
            ? vmm::format("set terminal svg size {},{} font 'sans,12' background '#ffffff'\n", width, height)
            : vmm::format("set terminal pngcairo size {},{} font 'sans,10' background '#ffffff'\n", width, height);
    script += "set encoding utf8\nset style data histograms\nset style histogram rowstacked\n"
              "set style fill solid 0.9 noborder\nset boxwidth 0.6\nset grid ytics lc rgb '#dddddd'\nset border 3\n"
              "set xtics nomirror scale 0\nset ytics nomirror\nset key below\nset xlabel \"\\n\"\n";
    std::size_t number = 0;
    for (const std::vector<Panel>& panels : drawn) {
        for (const Panel& panel : panels) {
            script += vmm::format("$bars{} << END\n", number++);
            for (const CellResult* bar : panel.bars) {
                script += bar_line(*bar, unit_of(panel));
            }
            script += "END\n";
        }
    }
    script +=
        vmm::format("set multiplot layout {},{} title \"Time until a guest has touched all its memory once (median "
                    "of {} run{}, whiskers from the\\nfastest to the slowest), and the second-level faults it "
                    "took meanwhile\" font ',13'\n",
                    drawn.size(), columns, runs, runs == 1 ? "" : "s");
    number = 0;
    for (const std::vector<Panel>& panels : drawn) {
        for (const Panel& panel : panels) {
            script += panel_commands(panel, number++, &panel == &panels.front());
        }
        for (std::size_t empty = panels.size(); empty < columns; ++empty) {
            script += "set multiplot next\n";
        }
    }
    return script + "unset multiplot\n";
}

void check_gnuplot(PlotFormat format) {
    if (!is_executable(kProgram)) {
        throw Error(
            "cannot draw the plot: gnuplot is not there (install the package gnuplot-nox, or leave out --plot)");
    }
    ChildSpec spec;
    const std::string terminal = format == PlotFormat::kSvg ? "svg" : "pngcairo";
    spec.words = {kProgram, "-e", "set terminal " + terminal};
    spec.timeout_seconds = 30;
    if (const ChildEnd end = run_child(spec); !end.succeeded()) {
        throw Error("cannot draw the plot: this gnuplot cannot write " + terminal + ": " + end.problem());
    }
}

std::string draw_plot(const std::string& script) {
    const WorkFolder folder;
    const std::string file = folder.file("plot");
    std::ofstream(file, std::ios::binary) << script;
    ChildSpec spec;
    spec.words = {kProgram, file};
    spec.timeout_seconds = 60;
    const ChildEnd end = run_child(spec);
    if (!end.succeeded() || end.output.empty()) {
        throw Error("cannot draw the plot: gnuplot failed: " + end.problem());
    }
    return end.output;
}

} // namespace vmm::bench
