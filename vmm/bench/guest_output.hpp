// What the built-in guest prints (vmm/guest/README.md), as figures.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "vmm/bench/sample.hpp"

namespace vmm::bench {

/// Cycles of the time-stamp counter.
struct GuestOutput {
    std::uint64_t cpus = 0; ///< that took part
    std::optional<std::uint64_t> reader_cycles;
    std::vector<std::vector<std::uint64_t>> pass_cycles; ///< by pass, then by CPU
};

/// Reads the guest's lines. Lines of other origin are ignored, because another VMM's console may add some.
/// Throws Error: the guest gave up, or did not come to its summary, or passes are missing.
[[nodiscard]] GuestOutput parse_guest_output(std::string_view console);

/// Whether the guest's last line is there.
[[nodiscard]] bool has_summary(std::string_view console) noexcept;

/// Adds the guest's figures.
void add_guest_figures(const GuestOutput& output, double seconds_per_cycle, Sample& sample);

} // namespace vmm::bench
