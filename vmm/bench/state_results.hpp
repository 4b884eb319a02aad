// The results of `vmm bench state`, as values and as JSON (docs/bench.md).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "vmm/bench/harness.hpp"
#include "vmm/bench/host_facts.hpp"
#include "vmm/bench/state_case.hpp"
#include "vmm/bench/state_figures.hpp"
#include "vmm/bench/statistics.hpp"

namespace vmm::bench {

struct StateSettings {
    std::uint64_t memory_bytes = 0;
    unsigned vcpus = 1;
    unsigned workers = 1; ///< prefault workers, threads of the bare read, and threads that write a snapshot
    std::vector<PageSize> page_sizes{};
    std::vector<RestoreMode> modes{};
    unsigned runs = 1;   ///< asked for
    unsigned clones = 1; ///< guests that go on from one snapshot at the same time
    bool warm = true;

    friend bool operator==(const StateSettings&, const StateSettings&) = default;
};

struct StateResult {
    StateCase of;
    std::vector<StateSample> samples{}; ///< of each round, in order
    std::string failure{};              ///< why no further run was made; empty: no run failed

    /// Returns nothing if no run has the figure.
    [[nodiscard]] std::optional<Statistics> statistics(StateFigure figure) const;
};

struct StateResults {
    static constexpr int kSchema = 1;

    std::string version{};
    HostFacts host{};
    StateSettings settings{};
    Harness harness{};
    std::optional<double> load_before{}; ///< the host's load average over a minute, before the first run
    std::optional<double> load_after{};
    bool complete = false; ///< every case had all its runs
    std::vector<StateResult> cases{};

    /// Returns null if the case was not measured.
    [[nodiscard]] const StateResult* find(const StateCase& of) const noexcept;
    [[nodiscard]] bool any_failed() const noexcept;
};

[[nodiscard]] std::string to_json(const StateResults& results);

} // namespace vmm::bench
