// Draws with gnuplot how soon a guest is ready in each way of starting it, and how late it is then.
#pragma once

#include <string>

#include "vmm/bench/plot.hpp"
#include "vmm/bench/state_results.hpp"

namespace vmm::bench {

/// The commands for gnuplot, which writes the picture to its standard output. The picture has a panel of the times
/// until a guest is ready, and one of how late its beats are. The text is empty if there is nothing to draw.
[[nodiscard]] std::string plot_script(const StateResults& results, PlotFormat format);

} // namespace vmm::bench
