// The cost that the harness of a benchmark adds to the measured programs.
#pragma once

#include <optional>

namespace vmm::bench {

/// The cost of the harness.
struct Harness {
    double seconds = 0;                      ///< of the whole benchmark
    double run_seconds = 0;                  ///< of these, the time in which measured programs ran
    double own_cpu_seconds = 0;              ///< processor time of the harness while they ran
    std::optional<double> empty_run_seconds; ///< a run that measures nothing: starting, ending and reading it

    /// The processor time of the harness, as a share of the measured programs' time.
    [[nodiscard]] double share() const noexcept { return run_seconds > 0 ? own_cpu_seconds / run_seconds : 0; }

    friend bool operator==(const Harness&, const Harness&) = default;
};

} // namespace vmm::bench
