#include "vmm/bench/plot_parts.hpp"

#include <algorithm>

#include "kvm/host/format.hpp"

namespace vmm::bench {

std::string bars_head(std::size_t bars, PlotFormat format) {
    constexpr unsigned kBarWidth = 92; // pixels, including the space beside it
    constexpr unsigned kPanelHeight = 480;
    const std::size_t width = std::max<std::size_t>(bars * kBarWidth + 180, 860);
    std::string script =
        format == PlotFormat::kSvg
            ? vmm::format("set terminal svg size {},{} font 'sans,12' background '#ffffff'\n", width, kPanelHeight)
            : vmm::format("set terminal pngcairo size {},{} font 'sans,10' background '#ffffff'\n", width,
                          kPanelHeight);
    script += "set encoding utf8\nset style data histograms\nset style fill solid 0.9 noborder\nset boxwidth 0.7\n"
              "set grid ytics lc rgb '#dddddd'\nset border 3\nset xtics nomirror scale 0\nset ytics nomirror\n"
              "set key below\nset xlabel \"\\n\"\nset ylabel \"milliseconds\"\nset logscale y\n";
    return script;
}

} // namespace vmm::bench
