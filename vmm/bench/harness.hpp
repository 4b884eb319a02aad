// What the harness of a benchmark added to what it measured.
#pragma once

#include <optional>

namespace vmm::bench {

/// What the harness added.
struct Harness {
    double seconds = 0;                      ///< of the whole benchmark
    double run_seconds = 0;                  ///< of these, in measured programs
    double own_cpu_seconds = 0;              ///< of processor time of the harness while they ran
    std::optional<double> empty_run_seconds; ///< a run that measures nothing: starting, ending and reading it

    /// What the harness took from the programs it measured, as a share of their time.
    [[nodiscard]] double share() const noexcept { return run_seconds > 0 ? own_cpu_seconds / run_seconds : 0; }

    friend bool operator==(const Harness&, const Harness&) = default;
};

} // namespace vmm::bench
