// Draws with gnuplot how long each method takes until memory has been touched once.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "vmm/bench/results.hpp"

namespace vmm::bench {

enum class PlotFormat { kSvg, kPng };

/// The format for the ending of the file's name; nothing if the ending is neither .svg nor .png.
[[nodiscard]] std::optional<PlotFormat> plot_format(const std::string& path);

/// The commands for gnuplot, which writes the picture to its standard output. The picture has a panel for each page
/// size (of the most memory and vCPUs measured). In it is a bar for each method, with its time and faults above. The
/// text is empty if there is nothing to draw.
[[nodiscard]] std::string plot_script(const Results& results, PlotFormat format);

/// Results that get a row of panels of their own in a picture.
struct PlotRow {
    std::string title; ///< is shown above the row; empty: there is none
    const Results* results = nullptr;
};

/// Does the same with a row of panels for each of `rows`. Rows without a run are left out.
[[nodiscard]] std::string plot_script(const std::vector<PlotRow>& rows, PlotFormat format);

/// Throws Error if gnuplot is missing, or cannot write `format`.
void check_gnuplot(PlotFormat format);

/// Runs gnuplot. Throws Error.
[[nodiscard]] std::string draw_plot(const std::string& script);

} // namespace vmm::bench
