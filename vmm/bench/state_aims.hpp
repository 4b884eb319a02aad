// The aims with which `vmm bench state` compares its figures.
#pragma once

#include <vector>

#include "vmm/bench/aim.hpp"
#include "vmm/bench/state_results.hpp"

namespace vmm::bench {

/// The aims for which something was measured, in the order of the documents. If an aim is in seconds, its bound is the
/// median of the runs' own bounds.
[[nodiscard]] std::vector<Aim> state_aims(const StateResults& results);

/// How long a guest may stand still for a snapshot: 20 ms, and the time for `bytes` at the rate at which the snapshot
/// was written.
[[nodiscard]] double wanted_stop_seconds(double bytes, double written_bytes, double total_seconds) noexcept;

} // namespace vmm::bench
