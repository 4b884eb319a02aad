// The results of a benchmark, as values, as JSON (docs/bench.md) and as CSV.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "vmm/bench/cell.hpp"
#include "vmm/bench/harness.hpp"
#include "vmm/bench/host_facts.hpp"
#include "vmm/bench/sample.hpp"
#include "vmm/bench/share.hpp"
#include "vmm/bench/statistics.hpp"

namespace vmm::bench {

struct Settings {
    std::string preset; ///< empty: none
    unsigned runs = 5;  ///< asked for
    unsigned passes = 5;
    bool warm = true;
    std::optional<double> time_limit_seconds;
    std::string qemu_version;        ///< empty: QEMU was not measured
    std::string command;             ///< empty: no command was measured
    std::optional<double> bandwidth; ///< bytes a second that all CPUs together write, if it was measured
    std::optional<Share> share{};    ///< of the matrix; nothing: the whole matrix
    unsigned attempt = 1;            ///< how often this share was begun, including this time; 1 to kMostAttempts

    static constexpr unsigned kMostAttempts = 1000;

    friend bool operator==(const Settings&, const Settings&) = default;
};

struct CellResult {
    Cell cell;
    std::vector<Sample> samples;
    std::string failure;   ///< why no further run was made; empty: no run failed
    bool left_out = false; ///< whether `failure` only means that a run took too long for the preset

    /// The values of one figure in the runs that have it.
    [[nodiscard]] std::vector<double> values(Figure figure) const;
    /// Returns nothing if no run has the figure.
    [[nodiscard]] std::optional<Statistics> statistics(Figure figure) const;
    [[nodiscard]] std::optional<double> median_of(Figure figure) const;

    friend bool operator==(const CellResult&, const CellResult&) = default;
};

struct Results {
    static constexpr int kSchema = 1;

    std::string version; ///< of the program that wrote it
    HostFacts host;
    Settings settings;
    Harness harness;
    bool complete = false; ///< every cell had all its runs
    std::vector<CellResult> cells;
    std::vector<Cell> matrix{}; ///< with Settings::share: the cells of all shares

    [[nodiscard]] const CellResult* find(const Cell& cell) const noexcept;
    [[nodiscard]] bool any_failed() const noexcept;

    friend bool operator==(const Results&, const Results&) = default;
};

/// Fills in kPrefault of QEMU's runs with prealloc, because QEMU does not report how long its prealloc took. The value
/// is how much later the guest started than in the median run without prealloc, at least 0.
void derive_prealloc(Results& results);

[[nodiscard]] std::string to_json(const Results& results);
/// One line for each run, and a heading.
[[nodiscard]] std::string to_csv(const Results& results);
/// The reverse of to_json(). Throws Error, which names `origin`, if `text` is no such file.
[[nodiscard]] Results parse_results(const std::string& text, const std::string& origin);
/// Throws Error.
[[nodiscard]] Results read_results(const std::string& path);

} // namespace vmm::bench
