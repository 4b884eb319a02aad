// Draws with gnuplot how long guests stand still when they migrate, and how late they are afterwards.
#pragma once

#include <string>

#include "vmm/bench/migrate_results.hpp"
#include "vmm/bench/plot.hpp"

namespace vmm::bench {

/// The commands for gnuplot, which writes the picture to its standard output. The picture has a panel of the downtimes,
/// and one of how late the guest's beats are before and after. The text is empty if there is nothing to draw.
[[nodiscard]] std::string plot_script(const MigrateResults& results, PlotFormat format);

} // namespace vmm::bench
