// The sets of measurements for options that are not given.
#pragma once

#include <optional>
#include <string_view>

#include "vmm/bench/matrix.hpp"

namespace vmm::bench {

enum class Preset {
    kNone,  ///< kStandardMemoryBytes by every method
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
    /// The longest time of a run. A run that takes longer is left out, which is no failure.
    std::optional<double> run_limit_seconds;
};

/// The facts about a host that decide which cells there are, beside its room.
struct PresetHost {
    unsigned cpus = 1;           ///< CPUs that this process may use
    bool prefault_ioctl = false; ///< KVM_PRE_FAULT_MEMORY can be used
    bool nested = false;         ///< it is itself a guest
    bool thp_pool = true;        ///< memory of a pool can have transparent huge pages
};

/// The cells of a preset on a host. If `full`, kRfc is not scaled. Methods, page sizes and pools of transparent huge
/// pages that the host does not offer are left out. The ioctl with touches is used only if the host is itself a guest.
[[nodiscard]] PresetFacts preset_facts(Preset preset, const HostRoom& room, const PresetHost& host, bool full);

} // namespace vmm::bench
