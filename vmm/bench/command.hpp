// `vmm bench`, from its options to its exit status.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/bench/contenders.hpp"
#include "vmm/bench/matrix.hpp"
#include "vmm/bench/presets.hpp"
#include "vmm/bench/share.hpp"

namespace vmm {

/// `vmm bench [PRESET]`
struct BenchCommand {
    bench::Preset preset = bench::Preset::kNone;
    bench::Matrix matrix = {};    ///< empty lists, including `orders`, mean those of the preset
    std::optional<unsigned> runs; ///< 1 to kMaxRuns
    std::optional<double> time_limit_seconds;
    std::optional<double> timeout_seconds; ///< of one run; RunSettings has the default
    bool full = false;                     ///< the preset at its full size
    bool warm = true;
    bool model = false; ///< print the predicted times of larger guests
    std::string json;   ///< files; empty: none
    std::string csv;
    std::string plot;
    bench::RunSettings settings;
    std::optional<bench::Share> cells; ///< of the matrix; nothing: the whole matrix
    unsigned attempt = 1;              ///< as Settings::attempt; with `cells`
    /// Has the words of the command for those of the library, in why a cell failed; empty: they stay as they are.
    std::function<std::string(std::string_view)> words{};

    static constexpr unsigned kMaxRuns = 1000;
};

/// `vmm bench compare BEFORE AFTER`
struct BenchCompareCommand {
    std::string before;
    std::string after;
    double threshold = 0.1; ///< a tenth
};

/// `vmm bench merge FILE...`
struct BenchMergeCommand {
    std::vector<std::string> files;
    std::string json; ///< files; empty: none
    std::string plot;
};

/// Measures and prints. Returns the program's exit status: 0; 1 if a cell failed; 4 if a signal stopped it. If a signal
/// stops it, the results until then are printed and written. Throws Error before the first run if the matrix does not
/// fit this host, if an output cannot be written, or if a program is missing.
[[nodiscard]] int run_bench(const BenchCommand& command);

/// Prints the changes. Returns 0, or 1 if something got worse. Throws Error if a file cannot be read, or is no result.
[[nodiscard]] int run_bench_compare(const BenchCompareCommand& command);

/// Joins results and prints them by kind of host. Returns 0, or 1 if a cell failed or is missing. Throws Error if a
/// file cannot be read, is no result or is given twice, or if an output cannot be written.
[[nodiscard]] int run_bench_merge(const BenchMergeCommand& command);

} // namespace vmm
