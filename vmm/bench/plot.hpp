// The picture: how long until memory has been touched once, by gnuplot.
#pragma once

#include <optional>
#include <string>

#include "vmm/bench/results.hpp"

namespace vmm::bench {

enum class PlotFormat { kSvg, kPng };

/// By the ending of the file's name; nothing where it is neither .svg nor .png.
[[nodiscard]] std::optional<PlotFormat> plot_format(const std::string& path);

/// The commands for gnuplot, which write the picture to its standard output: a panel for each page size (of the most
/// memory and vCPUs measured), a bar for each method, made of host side, second level, reading and first pass; above
/// it the time and the faults. Empty where there is nothing to draw.
[[nodiscard]] std::string plot_script(const Results& results, PlotFormat format);

/// Throws Error where gnuplot is not there, or cannot write `format`.
void check_gnuplot(PlotFormat format);

/// Runs gnuplot. Throws Error.
[[nodiscard]] std::string draw_plot(const std::string& script);

} // namespace vmm::bench
