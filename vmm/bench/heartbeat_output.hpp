// The lines that the built-in guest prints about its heartbeat (vmm/guest/README.md).
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/bench/state_figures.hpp"

namespace vmm::bench {

/// One such line. Times are in seconds.
struct HeartbeatLine {
    double beats = 0;
    double late_p50 = 0;
    double late_p99 = 0;
    double late_max = 0;
    double backward = 0; ///< how often the clock went back
};

/// Returns nothing if `line` is no such line, or is incomplete.
[[nodiscard]] std::optional<HeartbeatLine> parse_heartbeat(std::string_view line);

/// Does the same for a line that must be one. Throws Error if it is not.
[[nodiscard]] HeartbeatLine heartbeat_of(const std::string& line);
/// All such lines of the guest's output, in order. Throws Error.
[[nodiscard]] std::vector<HeartbeatLine> heartbeats_of(const std::string& console);

/// Adds the figures of a line, except the number of beats.
void add_heartbeat(const HeartbeatLine& line, StateSample& sample);

} // namespace vmm::bench
