#include "vmm/bench/merge.hpp"

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "vmm/bench/json_parts.hpp"
#include "vmm/bench/results_json.hpp"
#include "vmm/bench/table.hpp"

namespace vmm::bench {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kMergedKind = "vmm bench merged";

/// Whether the figures of both can be in one table.
bool go_together(const Results& one, const Results& other) {
    return same_kind(one.host, other.host) && one.version == other.version &&
           one.settings.passes == other.settings.passes && one.settings.warm == other.settings.warm &&
           one.settings.qemu_version == other.settings.qemu_version && one.settings.command == other.settings.command;
}

template <typename Value>
void append_once(std::vector<Value>& list, const Value& value) {
    if (std::ranges::find(list, value) == list.end()) {
        list.push_back(value);
    }
}

bool was_measured(const CellResult& result) noexcept {
    return result.failure.empty() && !result.samples.empty();
}

void add_harness(Harness& sum, const Harness& more) {
    sum.seconds += more.seconds;
    sum.run_seconds += more.run_seconds;
    sum.own_cpu_seconds += more.own_cpu_seconds;
    if (!sum.empty_run_seconds) {
        sum.empty_run_seconds = more.empty_run_seconds;
    }
}

/// Joins the inputs one by one.
class Merge {
  public:
    explicit Merge(std::string version) { merged_.version = std::move(version); }

    /// Must be called once for each input, before its cells are added.
    void add_source(const MergeInput& input) {
        const Results& results = input.results;
        const Settings& settings = results.settings;
        merged_.sources.push_back({std::filesystem::path(input.path).filename().string(), results.host.node,
                                   settings.share, settings.attempt, results.complete});
        HostGroup& group = group_of(results);
        append_once(group.nodes, results.host.node);
        group.results.settings.runs = std::max(group.results.settings.runs, settings.runs);
        if (group.results.settings.preset != settings.preset) {
            group.results.settings.preset.clear();
        }
        add_harness(group.results.harness, results.harness);
        if (!results.matrix.empty()) {
            append_once(matrices_, results.matrix);
        }
    }

    /// Adds the cells that were measured, or those that were not. The latter must be added first, so that a failure is
    /// known when the figures of another file replace it.
    void add_cells(const Results& results, bool measured) {
        Results& group = group_of(results).results;
        for (const CellResult& cell : results.cells) {
            if (was_measured(cell) == measured) {
                add_cell(group, cell, results);
            }
        }
    }

    [[nodiscard]] MergedResults take() && {
        for (HostGroup& group : merged_.groups) {
            group.results.complete = std::ranges::all_of(group.results.cells, was_measured);
            group.results.cells = in_order(std::move(group.results.cells));
        }
        for (const auto& matrix : matrices_) {
            look_at_matrix(matrix);
        }
        if (matrices_.size() > 1 && !merged_.missing.empty()) {
            merged_.warnings.push_back(
                vmm::format("the shares are those of {} matrices, of which cells are missing (name --memory, --vcpus, "
                            "--workers, --page-size and --prefault, so that all hosts agree on the cells)",
                            matrices_.size()));
        }
        return std::move(merged_);
    }

  private:
    HostGroup& group_of(const Results& results) {
        const auto found = std::ranges::find_if(
            merged_.groups, [&](const HostGroup& group) { return go_together(group.results, results); });
        if (found != merged_.groups.end()) {
            return *found;
        }
        HostGroup group;
        group.results.version = results.version;
        group.results.host = results.host;
        group.results.settings = results.settings;
        group.results.settings.share.reset();
        group.results.settings.attempt = 1;
        group.results.settings.bandwidth.reset();
        merged_.groups.push_back(std::move(group));
        return merged_.groups.back();
    }

    void add_cell(Results& group, const CellResult& cell, const Results& from) {
        const auto found =
            std::ranges::find_if(group.cells, [&](const CellResult& other) { return other.cell == cell.cell; });
        const bool is_new = found == group.cells.end();
        const bool replaces = !is_new && !was_measured(*found) && was_measured(cell);
        if (replaces || (is_new && was_measured(cell) && from.settings.attempt > 1)) {
            merged_.retried.push_back({cell.cell, from.host.node, from.settings.attempt, is_new ? "" : found->failure});
        }
        if (is_new) {
            group.cells.push_back(cell);
        } else if (replaces) {
            *found = cell;
        } else if (was_measured(cell)) {
            found->samples.insert(found->samples.end(), cell.samples.begin(), cell.samples.end());
        }
    }

    /// Returns the cells in the order in which one host would have measured them, whichever file came first.
    [[nodiscard]] std::vector<CellResult> in_order(std::vector<CellResult> cells) const {
        std::vector<CellResult> ordered;
        for (const auto& matrix : matrices_) {
            for (const Cell& cell : matrix) {
                const auto found =
                    std::ranges::find_if(cells, [&](const CellResult& result) { return result.cell == cell; });
                if (found != cells.end()) {
                    ordered.push_back(std::move(*found));
                    cells.erase(found);
                }
            }
        }
        std::ranges::move(cells, std::back_inserter(ordered)); // these are in files without a matrix
        return ordered;
    }

    void look_at_matrix(const std::vector<Cell>& matrix) {
        std::vector<std::size_t> parts; // for each kind of host that has some of its cells: how many
        for (const HostGroup& group : merged_.groups) {
            const auto has =
                std::ranges::count_if(matrix, [&](const Cell& cell) { return group.results.find(cell) != nullptr; });
            if (has != 0) {
                parts.push_back(static_cast<std::size_t>(has));
            }
        }
        for (const Cell& cell : matrix) {
            if (std::ranges::none_of(merged_.groups,
                                     [&](const HostGroup& group) { return group.results.find(cell) != nullptr; })) {
                append_once(merged_.missing, cell);
            }
        }
        if (parts.size() > 1 && std::ranges::any_of(parts, [&](std::size_t has) { return has < matrix.size(); })) {
            merged_.warnings.push_back(vmm::format(
                "one matrix of {} cells was measured in parts on {} kinds of hosts, whose figures cannot be compared "
                "(run all its shares on each kind: docs/fleet.md)",
                matrix.size(), parts.size()));
        }
    }

    MergedResults merged_;
    std::vector<std::vector<Cell>> matrices_; ///< each once
};

} // namespace

bool MergedResults::is_complete() const noexcept {
    return missing.empty() &&
           std::ranges::all_of(groups, [](const HostGroup& group) { return group.results.complete; });
}

bool MergedResults::any_failed() const noexcept {
    return !missing.empty() ||
           std::ranges::any_of(groups, [](const HostGroup& group) { return group.results.any_failed(); });
}

MergedResults merge(const std::vector<MergeInput>& inputs, const std::string& version) {
    if (inputs.empty()) {
        throw Error("cannot merge results: no file is named");
    }
    for (auto one = inputs.begin(); one != inputs.end(); ++one) {
        for (auto other = std::next(one); other != inputs.end(); ++other) {
            if (one->results == other->results) {
                throw Error("cannot merge " + one->path + " and " + other->path +
                            ": these are the same results, which would count twice (leave one of them out)");
            }
        }
    }
    Merge merge(version);
    for (const MergeInput& input : inputs) {
        merge.add_source(input);
    }
    for (const bool measured : {false, true}) {
        for (const MergeInput& input : inputs) {
            merge.add_cells(input.results, measured);
        }
    }
    return std::move(merge).take();
}

std::string to_json(const MergedResults& merged) {
    Json json;
    json["schema"] = MergedResults::kSchema;
    json["kind"] = kMergedKind;
    json["version"] = merged.version;
    json["complete"] = merged.is_complete();
    json["sources"] = Json::array();
    for (const MergeSource& source : merged.sources) {
        json["sources"].push_back({{"file", source.file},
                                   {"node", source.node},
                                   {"cells", source.share ? Json(to_string(*source.share)) : Json(nullptr)},
                                   {"attempt", source.attempt},
                                   {"complete", source.complete}});
    }
    json["retried"] = Json::array();
    for (const RetriedCell& retried : merged.retried) {
        json["retried"].push_back({{"cell", to_json_parts(retried.cell)},
                                   {"node", retried.node},
                                   {"attempt", retried.attempt},
                                   {"failure", retried.failure}});
    }
    json["missing"] = Json::array();
    for (const Cell& cell : merged.missing) {
        json["missing"].push_back(to_json_parts(cell));
    }
    json["warnings"] = merged.warnings;
    json["groups"] = Json::array();
    for (const HostGroup& group : merged.groups) {
        json["groups"].push_back({{"nodes", group.nodes}, {"results", to_json_parts(group.results)}});
    }
    return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

namespace {

MergedResults merged_of_json(const Json& json) {
    if (json.at("kind") != kMergedKind) {
        MergedResults merged;
        Results results = results_of_json(json);
        merged.version = results.version;
        merged.groups.push_back({std::move(results), {}});
        merged.groups.back().nodes = {merged.groups.back().results.host.node};
        return merged;
    }
    if (const int schema = json.at("schema").get<int>(); schema != MergedResults::kSchema) {
        throw Error(vmm::format("its schema is {}, and this version knows {}", schema, MergedResults::kSchema));
    }
    MergedResults merged;
    merged.version = json.at("version").get<std::string>();
    for (const Json& each : json.at("sources")) {
        MergeSource source{each.at("file").get<std::string>(), each.at("node").get<std::string>(), std::nullopt,
                           each.at("attempt").get<unsigned>(), each.at("complete").get<bool>()};
        if (!each.at("cells").is_null()) {
            source.share = parse_share(each.at("cells").get<std::string>());
        }
        merged.sources.push_back(std::move(source));
    }
    for (const Json& each : json.at("retried")) {
        merged.retried.push_back({cell_of_json(each.at("cell")), each.at("node").get<std::string>(),
                                  each.at("attempt").get<unsigned>(), each.at("failure").get<std::string>()});
    }
    for (const Json& cell : json.at("missing")) {
        merged.missing.push_back(cell_of_json(cell));
    }
    merged.warnings = json.at("warnings").get<std::vector<std::string>>();
    for (const Json& each : json.at("groups")) {
        merged.groups.push_back(
            {results_of_json(each.at("results")), each.at("nodes").get<std::vector<std::string>>()});
    }
    return merged;
}

std::string names_of_nodes(const std::vector<std::string>& nodes) {
    std::string names;
    for (const std::string& node : nodes) {
        names += (names.empty() ? "" : ", ") + node;
    }
    return names;
}

} // namespace

MergedResults parse_merged(const std::string& text, const std::string& origin) {
    MergedResults merged;
    read_json_of_results(text, origin, [&merged](const Json& json) { merged = merged_of_json(json); });
    return merged;
}

MergedResults read_merged(const std::string& path) {
    return parse_merged(read_file_of_results(path), path);
}

std::string to_table(const MergedResults& merged) {
    std::string text;
    for (const HostGroup& group : merged.groups) {
        text += vmm::format("=== {}\n    {} host{}: {}; vmm {}\n\n", kind_text(group.results.host), group.nodes.size(),
                            group.nodes.size() == 1 ? "" : "s", names_of_nodes(group.nodes), group.results.version);
        text += to_table(group.results) + "\n";
    }
    std::size_t cells = 0;
    for (const HostGroup& group : merged.groups) {
        cells += group.results.cells.size();
    }
    text += vmm::format("merged: {} file{}, {} cell{}, {} kind{} of hosts\n", merged.sources.size(),
                        merged.sources.size() == 1 ? "" : "s", cells, cells == 1 ? "" : "s", merged.groups.size(),
                        merged.groups.size() == 1 ? "" : "s");
    for (const RetriedCell& retried : merged.retried) {
        text += vmm::format(
            "RETRIED {}: measured by attempt {} on {}{}\n", to_string(retried.cell), retried.attempt, retried.node,
            retried.failure.empty() ? "; no attempt before gave a result" : "; another one failed: " + retried.failure);
    }
    for (const Cell& cell : merged.missing) {
        text += "MISSING " + to_string(cell) + ": no file has it\n";
    }
    for (const std::string& warning : merged.warnings) {
        text += "warning: " + warning + "\n";
    }
    return text + (merged.is_complete() ? "COMPLETE: every cell was measured\n"
                                        : "NOT COMPLETE: cells are missing, failed or were left out\n");
}

std::string plot_script(const MergedResults& merged, PlotFormat format) {
    std::vector<PlotRow> rows;
    for (const HostGroup& group : merged.groups) {
        rows.push_back({merged.groups.size() == 1 ? "" : kind_text(group.results.host), &group.results});
    }
    return plot_script(rows, format);
}

} // namespace vmm::bench
