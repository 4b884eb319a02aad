// What is measured if the options do not say.
#pragma once

#include <optional>
#include <string_view>

#include "vmm/bench/matrix.hpp"

namespace vmm::bench {

enum class Preset {
    kNone,  ///< 512 MiB by every method
    kQuick, ///< less than a minute
    kRfc,   ///< 32 vCPUs and 64 GiB, scaled to the host
    kScale, ///< memory doubling, workers doubling
};

/// "", "quick", "rfc", "scale".
[[nodiscard]] std::string_view to_string(Preset preset) noexcept;

struct PresetFacts {
    Matrix matrix;
    unsigned runs = 5;
    std::optional<double> time_limit_seconds;
    /// A run that takes longer is left out, which is no failure.
    std::optional<double> run_limit_seconds;
};

/// What a preset means on a host with `cpus` CPUs. If `full`, kRfc is not scaled. The result has no methods and page
/// sizes that the host does not offer.
[[nodiscard]] PresetFacts preset_facts(Preset preset, const HostRoom& room, unsigned cpus, bool prefault_ioctl,
                                       bool full);

} // namespace vmm::bench
