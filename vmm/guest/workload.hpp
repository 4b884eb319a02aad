// The work itself: passes over the free memory, measured and reported.
#pragma once

#include <cstddef>
#include <cstdint>

#include "vmm/guest/memory_ranges.hpp"
#include "vmm/guest/options.hpp"

namespace vmm::guest {

/// Above this number of CPUs, results are printed after the last pass unless the option report= says otherwise. CPUs
/// that wait for CPU 0 to print use up the host's time: on a host that has far fewer CPUs than the guest, most of it.
inline constexpr std::size_t kMaxCpusReportedLive = 8;

struct WorkloadPlan {
    Options options;
    /// How many CPUs are up, this one included.
    std::size_t cpus = 1;

    [[nodiscard]] constexpr bool report_at_end() const noexcept {
        return options.report_at_end.value_or(cpus > kMaxCpusReportedLive);
    }
    /// How much memory the results need, in whole pages. It is mapped, and not part of the memory that is worked on.
    [[nodiscard]] std::uint64_t result_bytes() const noexcept;
};

/// Runs the passes that `plan` asks for over all of `memory`, which is mapped and is written to; prints a line for each
/// CPU and pass, and a summary. `results_address` is that of result_bytes() bytes. For CPU 0, once.
void run_workload(const WorkloadPlan& plan, const MemoryRanges& memory, std::uint64_t results_address) noexcept;

} // namespace vmm::guest
