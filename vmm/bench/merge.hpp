// Results of many files as one: the same matrix measured by several hosts.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "vmm/bench/plot.hpp"
#include "vmm/bench/results.hpp"

namespace vmm::bench {

/// One file that went into a merge.
struct MergeSource {
    std::string file; ///< its name without its folders
    std::string node; ///< the host that measured it
    std::optional<Share> share{};
    unsigned attempt = 1;
    bool complete = false;

    friend bool operator==(const MergeSource&, const MergeSource&) = default;
};

/// A cell that was begun more than once.
struct RetriedCell {
    Cell cell;
    std::string node;     ///< the host that measured it in the end
    unsigned attempt = 1; ///< the one that did
    std::string failure;  ///< what the file says in which it failed; empty: no file says

    friend bool operator==(const RetriedCell&, const RetriedCell&) = default;
};

/// What hosts of one kind measured in one way: the version and the settings that change figures are the same, too.
struct HostGroup {
    /// Of all its files. `host` is the first one's, and `complete` says that each of its cells was measured.
    Results results;
    std::vector<std::string> nodes; ///< the hosts' names, each once

    friend bool operator==(const HostGroup&, const HostGroup&) = default;
};

struct MergedResults {
    static constexpr int kSchema = 1;

    std::string version; ///< of the program that merged
    std::vector<HostGroup> groups;
    std::vector<MergeSource> sources;
    std::vector<RetriedCell> retried;
    std::vector<Cell> missing;         ///< cells of a matrix of which shares were measured, that no file has
    std::vector<std::string> warnings; ///< why the figures may say little, a sentence each

    /// True if no cell is missing and each one was measured.
    [[nodiscard]] bool is_complete() const noexcept;
    /// True if a cell failed or is missing. One that was left out for taking too long is no failure.
    [[nodiscard]] bool any_failed() const noexcept;

    friend bool operator==(const MergedResults&, const MergedResults&) = default;
};

/// A file that is to be merged.
struct MergeInput {
    std::string path; ///< for messages
    Results results;
};

/// Joins results. Hosts whose figures cannot be compared stay apart (same_kind()). Runs of one cell on hosts of one
/// kind are put together. A cell that failed in one file and was measured in another one counts as measured, and is
/// among MergedResults::retried, as are all cells of a file whose attempt is not the first.
/// Throws Error: there is nothing to merge, or two of `inputs` are the same results.
[[nodiscard]] MergedResults merge(const std::vector<MergeInput>& inputs, const std::string& version);

/// The groups of a file of merge(); or of a file of `vmm bench`, which is one group. Throws Error.
[[nodiscard]] MergedResults read_merged(const std::string& path);
/// The reverse of to_json(MergedResults). Throws Error that names `origin`.
[[nodiscard]] MergedResults parse_merged(const std::string& text, const std::string& origin);

[[nodiscard]] std::string to_json(const MergedResults& merged);
/// A table for each kind of host, and below them what was merged, retried and is missing.
[[nodiscard]] std::string to_table(const MergedResults& merged);
/// As plot_script(), with a row of panels for each kind of host.
[[nodiscard]] std::string plot_script(const MergedResults& merged, PlotFormat format);

} // namespace vmm::bench
