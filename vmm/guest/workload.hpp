// The work itself: passes over the free memory, measured and reported.
#pragma once

#include <cstddef>
#include <cstdint>

#include "vmm/guest/memory_ranges.hpp"
#include "vmm/guest/options.hpp"

namespace vmm::guest {

/// Above this number of CPUs, results are printed after the last pass unless the option report= says otherwise. CPUs
/// that wait for CPU 0 to print use up the host's time; if the host has far fewer CPUs than the guest, they use most of
/// it.
inline constexpr std::size_t kMaxCpusReportedLive = 8;

struct WorkloadPlan {
    Options options;
    /// How many CPUs are up, this one included.
    std::size_t cpus = 1;

    [[nodiscard]] constexpr bool report_at_end() const noexcept {
        return options.report_at_end.value_or(cpus > kMaxCpusReportedLive && !options.heartbeat_khz);
    }
    /// How much memory the results need, in whole pages. It is mapped, and the passes do not write to it.
    [[nodiscard]] std::uint64_t result_bytes() const noexcept;
};

// Only CPU 0 calls the following functions.

/// Prepares run_passes(): all of `memory` must be mapped, and will be written to. `results_address` is that of
/// result_bytes() bytes. It is called once, before all others.
void plan_workload(const WorkloadPlan& plan, const MemoryRanges& memory, std::uint64_t results_address) noexcept;

/// Runs the passes, and prints a line for each CPU and pass, and a summary. It may be called again, unless the results
/// are printed at the end.
void run_passes() noexcept;

/// The number of slots to which a pass writes.
[[nodiscard]] std::uint64_t slot_count() noexcept;

/// Writes to each of the slots [first, first + count) the value that it has already. Slots that do not exist are left
/// out.
void touch(std::uint64_t first, std::uint64_t count) noexcept;

} // namespace vmm::guest
