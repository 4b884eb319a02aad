// What `vmm bench state` holds its figures against.
#pragma once

#include <vector>

#include "vmm/bench/aim.hpp"
#include "vmm/bench/state_results.hpp"

namespace vmm::bench {

/// The aims for which there is something measured, in the order of the documents. The bound of one in seconds
/// is the median of each run's own.
[[nodiscard]] std::vector<Aim> state_aims(const StateResults& results);

/// How long a guest may stand still for a snapshot: 20 ms, and as long as `bytes` take at the rate at which the
/// snapshot was written.
[[nodiscard]] double wanted_stop_seconds(double bytes, double written_bytes, double total_seconds) noexcept;

} // namespace vmm::bench
