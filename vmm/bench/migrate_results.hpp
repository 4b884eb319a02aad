// The results of `vmm bench migrate`, as values and as JSON (docs/bench.md).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "vmm/bench/harness.hpp"
#include "vmm/bench/host_facts.hpp"
#include "vmm/bench/migrate_case.hpp"
#include "vmm/bench/migrate_figures.hpp"
#include "vmm/bench/statistics.hpp"

namespace vmm::bench {

struct MigrateSettings {
    std::uint64_t memory_bytes = 0;
    MigrateLists lists{};
    bool every = false; ///< every combination, and not one difference at a time
    unsigned runs = 1;  ///< asked for
    unsigned workers = 1;
    unsigned downtime_ms = 100; ///< that is asked for
    unsigned give_up_seconds = 5;
    bool warm = true;

    friend bool operator==(const MigrateSettings&, const MigrateSettings&) = default;
};

struct MigrateResult {
    MigrateCase of;
    std::vector<MigrateSample> samples{}; ///< of each round, in order
    std::string stayed_because{};         ///< why the guest did not go over, from the last such run
    std::string failure{};                ///< why no further run was made; empty: no run failed

    /// Returns nothing if no run has the figure.
    [[nodiscard]] std::optional<Statistics> statistics(MigrateFigure figure) const;
    /// The least value that `percent` of 100 runs do not exceed; nothing if no run has the figure.
    [[nodiscard]] std::optional<double> percentile(MigrateFigure figure, double percent) const;
};

struct MigrateResults {
    static constexpr int kSchema = 1;

    std::string version{};
    HostFacts host{};
    MigrateSettings settings{};
    Harness harness{};
    std::optional<double> load_before{}; ///< the host's load average over a minute, before the first run
    std::optional<double> load_after{};
    bool complete = false; ///< every case had all its runs
    std::vector<MigrateResult> cases{};

    [[nodiscard]] bool any_failed() const noexcept;
};

[[nodiscard]] std::string to_json(const MigrateResults& results);

} // namespace vmm::bench
