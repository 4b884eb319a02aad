// Figures from the output of the built-in guest (vmm/guest/README.md).
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "vmm/bench/sample.hpp"

namespace vmm::bench {

/// The figures, in cycles of the time-stamp counter.
struct GuestOutput {
    std::uint64_t cpus = 0; ///< how many took part
    std::optional<std::uint64_t> reader_cycles;
    std::vector<std::vector<std::uint64_t>> pass_cycles; ///< by pass, then by CPU
};

/// Reads the guest's lines. Other lines are ignored, because another VMM's console may add some. Throws Error if the
/// guest gave up, if it did not print its summary, or if passes are missing.
[[nodiscard]] GuestOutput parse_guest_output(std::string_view console);

/// Whether the guest's last line is there.
[[nodiscard]] bool has_summary(std::string_view console) noexcept;

/// Adds the guest's figures.
void add_guest_figures(const GuestOutput& output, double seconds_per_cycle, Sample& sample);

} // namespace vmm::bench
