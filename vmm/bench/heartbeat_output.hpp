// What the built-in guest says of its heartbeat (vmm/guest/README.md).
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "vmm/bench/state_figures.hpp"

namespace vmm::bench {

/// One line of it. Times are in seconds.
struct HeartbeatLine {
    double beats = 0;
    double late_p50 = 0;
    double late_p99 = 0;
    double late_max = 0;
    double backward = 0; ///< how often the clock went back
};

/// Returns nothing if `line` is no such line, or is not whole.
[[nodiscard]] std::optional<HeartbeatLine> parse_heartbeat(std::string_view line);

/// Adds what a line says, but for the number of beats.
void add_heartbeat(const HeartbeatLine& line, StateSample& sample);

} // namespace vmm::bench
