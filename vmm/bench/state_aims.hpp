// What `vmm bench state` holds its figures against.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "vmm/bench/state_results.hpp"
#include "vmm/bench/statistics.hpp"

namespace vmm::bench {

/// One aim beside what was measured for it.
struct StateAim {
    /// How `value` and `bound` are to be read.
    enum class Kind { kRatio, kSeconds, kCount };

    std::string name; ///< "restore full, 4K pages: ready, over the bare read"
    Kind kind = Kind::kRatio;
    Statistics value{}; ///< over the runs; a ratio is that of two figures of the same round
    double bound = 0;   ///< the most that is wanted; of kSeconds: the median of each run's own

    /// Whether the median keeps to the bound.
    [[nodiscard]] bool is_met() const noexcept { return value.median <= bound; }
};

/// The aims for which there is something measured, in the order of the documents.
[[nodiscard]] std::vector<StateAim> state_aims(const StateResults& results);

/// How long a guest may stand still for a snapshot: 20 ms, and as long as `bytes` take at the rate at which the
/// snapshot was written.
[[nodiscard]] double wanted_stop_seconds(double bytes, double written_bytes, double total_seconds) noexcept;

} // namespace vmm::bench
