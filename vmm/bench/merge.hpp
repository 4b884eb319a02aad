// Joins the results of many files: several hosts have measured one matrix.
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
    std::string node;     ///< the host whose figures count
    unsigned attempt = 1; ///< the attempt whose figures count
    std::string failure;  ///< the failure in the file in which it failed; empty: in no file

    friend bool operator==(const RetriedCell&, const RetriedCell&) = default;
};

/// The results of hosts of one kind that were measured in one way: the version and the settings that change figures are
/// the same, too.
struct HostGroup {
    /// The results of all its files. `host` is that of the first file, and `complete` says that each of the cells was
    /// measured.
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
    std::vector<Cell> missing;         ///< cells of a matrix that was measured in shares; no file has them
    std::vector<std::string> warnings; ///< reasons why the figures may mean little, a sentence each

    /// True if no cell is missing and each was measured.
    [[nodiscard]] bool is_complete() const noexcept;
    /// True if a cell failed or is missing. A cell that was left out because it took too long is no failure.
    [[nodiscard]] bool any_failed() const noexcept;

    friend bool operator==(const MergedResults&, const MergedResults&) = default;
};

/// A file for a merge.
struct MergeInput {
    std::string path; ///< for messages
    Results results;
};

/// Joins results. Hosts whose figures cannot be compared stay apart (same_kind()); runs of one cell on hosts of one
/// kind are put together. If a cell failed in one file and was measured in another, it counts as measured, and is in
/// MergedResults::retried. So are all cells of a file whose attempt is not the first. Throws Error if there is nothing
/// to merge, or if two of `inputs` are the same results.
[[nodiscard]] MergedResults merge(const std::vector<MergeInput>& inputs, const std::string& version);

/// Reads the groups of a file of merge(). A file of `vmm bench` is one group. Throws Error.
[[nodiscard]] MergedResults read_merged(const std::string& path);
/// The reverse of to_json(MergedResults). Throws Error, which names `origin`.
[[nodiscard]] MergedResults parse_merged(const std::string& text, const std::string& origin);

[[nodiscard]] std::string to_json(const MergedResults& merged);
/// A table for each kind of host, and below them what was merged, what was retried and what is missing.
[[nodiscard]] std::string to_table(const MergedResults& merged);
/// Does the same as plot_script(), with a row of panels for each kind of host.
[[nodiscard]] std::string plot_script(const MergedResults& merged, PlotFormat format);

} // namespace vmm::bench
