// The parts that the pictures of several benchmarks have in common.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "vmm/bench/plot.hpp"

namespace vmm::bench {

/// The unit of the pictures' scales, in seconds.
inline constexpr double kMilliseconds = 1e-3;

/// Lines of data for gnuplot.
struct PlotBlock {
    std::string lines;
    std::size_t bars = 0; ///< the number of bars in it
};

/// Makes the block from the lines that `make_line` returns for each of `results`. An empty line is no bar.
template <typename Result, typename MakeLine>
[[nodiscard]] PlotBlock plot_block(const std::vector<Result>& results, MakeLine make_line) {
    PlotBlock block;
    for (const Result& result : results) {
        const std::string line = make_line(result);
        block.lines += line;
        block.bars += line.empty() ? 0 : 1;
    }
    return block;
}

/// Begins a picture of panels that stand side by side and have `bars` bars in all. Their scale is logarithmic, and in
/// milliseconds.
[[nodiscard]] std::string bars_head(std::size_t bars, PlotFormat format);

} // namespace vmm::bench
