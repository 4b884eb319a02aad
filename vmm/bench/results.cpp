#include "vmm/bench/results.hpp"

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "vmm/bench/json_parts.hpp"
#include "vmm/bench/results_json.hpp"

namespace vmm::bench {

using Json = nlohmann::ordered_json;

std::vector<double> CellResult::values(Figure figure) const {
    std::vector<double> values;
    for (const Sample& sample : samples) {
        if (const auto value = sample[figure]) {
            values.push_back(*value);
        }
    }
    return values;
}

std::optional<Statistics> CellResult::statistics(Figure figure) const {
    const std::vector<double> all = values(figure);
    return all.empty() ? std::nullopt : std::optional(describe(all));
}

std::optional<double> CellResult::median_of(Figure figure) const {
    const std::vector<double> all = values(figure);
    return all.empty() ? std::nullopt : std::optional(median(all));
}

const CellResult* Results::find(const Cell& cell) const noexcept {
    const auto found = std::ranges::find_if(cells, [&](const auto& each) { return each.cell == cell; });
    return found == cells.end() ? nullptr : &*found;
}

bool Results::any_failed() const noexcept {
    return std::ranges::any_of(cells, [](const CellResult& cell) { return !cell.failure.empty() && !cell.left_out; });
}

void derive_prealloc(Results& results) {
    for (CellResult& result : results.cells) {
        if (result.cell.contender != Contender::kQemu || result.cell.method != Method::kHost) {
            continue;
        }
        const auto without = std::ranges::find_if(results.cells, [&](const CellResult& other) {
            return other.cell.contender == Contender::kQemu && other.cell.method == Method::kNone &&
                   same_shape(other.cell, result.cell);
        });
        const auto start = without == results.cells.end() ? std::nullopt : without->median_of(Figure::kReady);
        for (Sample& sample : result.samples) {
            if (start && sample[Figure::kReady]) {
                sample[Figure::kPrefault] = std::max(0.0, *sample[Figure::kReady] - *start);
                derive(sample);
            }
        }
    }
}

Json to_json_parts(const Cell& cell) {
    return {{"contender", to_string(cell.contender)},
            {"memory_bytes", cell.memory_bytes},
            {"vcpus", cell.vcpus},
            {"workers", cell.workers},
            {"page_size", vmm::to_string(cell.page_size)},
            {"prefault", to_string(cell.method)},
            {"order", to_string(cell.order)}};
}

namespace {

Json share_json(const std::optional<Share>& share) {
    return share ? Json{{"index", share->index}, {"of", share->of}} : Json(nullptr);
}

Json cells_json(const std::vector<Cell>& cells) {
    Json json = Json::array();
    for (const Cell& cell : cells) {
        json.push_back(to_json_parts(cell));
    }
    return json;
}

Json statistics_json(const CellResult& result) {
    Json json = Json::object();
    for (std::size_t i = 0; i < kFigures.size(); ++i) {
        if (const auto statistics = result.statistics(static_cast<Figure>(i))) {
            json[std::string(kFigures[i].name)] = to_json_parts(*statistics);
        }
    }
    return json;
}

} // namespace

Json to_json_parts(const Results& results) {
    Json json;
    json["schema"] = Results::kSchema;
    json["kind"] = "vmm bench";
    json["version"] = results.version;
    json["host"] = to_json_parts(results.host);
    json["settings"] = {{"preset", results.settings.preset},
                        {"runs", results.settings.runs},
                        {"passes", results.settings.passes},
                        {"warm", results.settings.warm},
                        {"time_limit_seconds", or_null(results.settings.time_limit_seconds)},
                        {"qemu_version", results.settings.qemu_version},
                        {"command", results.settings.command},
                        {"bandwidth_bytes_per_second", or_null(results.settings.bandwidth)},
                        {"cells", share_json(results.settings.share)},
                        {"attempt", results.settings.attempt}};
    json["harness"] = to_json_parts(results.harness);
    json["complete"] = results.complete;
    json["cells"] = Json::array();
    for (const CellResult& result : results.cells) {
        Json runs = Json::array();
        for (const Sample& sample : result.samples) {
            runs.push_back(to_json_parts(sample, kFigures));
        }
        json["cells"].push_back({{"cell", to_json_parts(result.cell)},
                                 {"failure", result.failure},
                                 {"left_out", result.left_out},
                                 {"statistics", statistics_json(result)},
                                 {"runs", runs}});
    }
    json["matrix"] = cells_json(results.matrix);
    return json;
}

std::string to_json(const Results& results) {
    // A host's name may have bytes that are not UTF-8.
    return to_json_parts(results).dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string to_csv(const Results& results) {
    std::string text = "contender,memory_bytes,vcpus,workers,page_size,prefault,order,run";
    for (const FigureFacts& figure : kFigures) {
        text += vmm::format(",{}", figure.name);
    }
    text += '\n';
    for (const CellResult& result : results.cells) {
        const Cell& cell = result.cell;
        for (std::size_t run = 0; run < result.samples.size(); ++run) {
            text += vmm::format("{},{},{},{},{},{},{},{}", to_string(cell.contender), cell.memory_bytes, cell.vcpus,
                                cell.workers, vmm::to_string(cell.page_size), to_string(cell.method),
                                to_string(cell.order), run + 1);
            for (const auto& value : result.samples[run].values()) {
                text += value ? vmm::format(",{:.9g}", *value) : ",";
            }
            text += '\n';
        }
    }
    return text;
}

namespace {

template <typename Value>
std::optional<Value> optional_of(const Json& json, const char* name) {
    const auto found = json.find(name);
    return found == json.end() || found->is_null() ? std::nullopt : std::optional(found->get<Value>());
}

template <typename Value>
Value known(const std::optional<Value>& value, const Json& text) {
    if (!value) {
        throw Error("'" + text.dump() + "' is not known to this version");
    }
    return *value;
}

} // namespace

Cell cell_of_json(const Json& json) {
    Cell cell;
    cell.contender = known(parse_contender(json.at("contender").get<std::string>()), json.at("contender"));
    cell.memory_bytes = json.at("memory_bytes").get<std::uint64_t>();
    cell.vcpus = json.at("vcpus").get<unsigned>();
    cell.workers = json.at("workers").get<unsigned>();
    cell.page_size = known(parse_page_size(json.at("page_size").get<std::string>()), json.at("page_size"));
    cell.method = known(parse_method(json.at("prefault").get<std::string>()), json.at("prefault"));
    cell.order = known(parse_order(json.at("order").get<std::string>()), json.at("order"));
    return cell;
}

namespace {

/// The share of a matrix; nothing in older files, and if all cells were measured. Throws Error.
std::optional<Share> parse_share_of(const Json& settings) {
    const auto found = settings.find("cells");
    if (found == settings.end() || found->is_null()) {
        return std::nullopt;
    }
    const auto share =
        parse_share(vmm::format("{}/{}", found->at("index").get<unsigned>(), found->at("of").get<unsigned>()));
    return known(share, *found);
}

unsigned parse_attempt(const Json& settings) {
    const auto attempt = settings.value("attempt", 1U); // older files do not have it
    if (attempt < 1 || attempt > Settings::kMostAttempts) {
        throw Error(vmm::format("there is no attempt {}", attempt));
    }
    return attempt;
}

CellResult parse_cell_result(const Json& json) {
    CellResult result;
    result.cell = cell_of_json(json.at("cell"));
    result.failure = json.at("failure").get<std::string>();
    result.left_out = json.at("left_out").get<bool>();
    for (const Json& run : json.at("runs")) {
        Sample sample;
        for (std::size_t i = 0; i < kFigures.size(); ++i) {
            sample.values()[i] = optional_of<double>(run, std::string(kFigures[i].name).c_str());
        }
        result.samples.push_back(sample);
    }
    return result;
}

} // namespace

Results results_of_json(const Json& json) {
    if (json.at("kind") != "vmm bench") {
        throw Error("it is of another kind");
    }
    if (const int schema = json.at("schema").get<int>(); schema != Results::kSchema) {
        throw Error(vmm::format("its schema is {}, and this version knows {}", schema, Results::kSchema));
    }
    Results results;
    results.version = json.at("version").get<std::string>();
    const Json& host = json.at("host");
    results.host = {host.at("node").get<std::string>(),
                    host.at("kernel").get<std::string>(),
                    host.at("cpu").get<std::string>(),
                    host.at("cpus").get<unsigned>(),
                    host.at("memory_bytes").get<std::uint64_t>(),
                    host.at("second_level").get<std::string>(),
                    host.at("tdp_mmu").is_null() ? std::nullopt : std::optional(host.at("tdp_mmu").get<bool>()),
                    host.at("kvm_pre_fault_memory").get<bool>(),
                    host.value("nested", false), // older files have neither this nor the next
                    host.value("microcode", "")};
    const Json& settings = json.at("settings");
    results.settings = {settings.at("preset").get<std::string>(),
                        settings.at("runs").get<unsigned>(),
                        settings.at("passes").get<unsigned>(),
                        settings.at("warm").get<bool>(),
                        optional_of<double>(settings, "time_limit_seconds"),
                        settings.at("qemu_version").get<std::string>(),
                        settings.at("command").get<std::string>(),
                        optional_of<double>(settings, "bandwidth_bytes_per_second"),
                        parse_share_of(settings),
                        parse_attempt(settings)};
    const Json& harness = json.at("harness");
    results.harness = {harness.at("seconds").get<double>(), harness.at("run_seconds").get<double>(),
                       harness.at("own_cpu_seconds").get<double>(), optional_of<double>(harness, "empty_run_seconds")};
    results.complete = json.at("complete").get<bool>();
    for (const Json& cell : json.at("cells")) {
        results.cells.push_back(parse_cell_result(cell));
    }
    for (const Json& cell : json.value("matrix", Json::array())) {
        results.matrix.push_back(cell_of_json(cell));
    }
    return results;
}

void read_json_of_results(const std::string& text, const std::string& origin,
                          const std::function<void(const Json&)>& take) {
    const std::string tried = "cannot use " + origin + " as results of vmm bench: ";
    const Json json = Json::parse(text, nullptr, false);
    if (json.is_discarded()) {
        throw Error(tried + "it is not JSON");
    }
    try {
        take(json);
    } catch (const Json::exception&) {
        throw Error(tried + "it has not the members that --json writes");
    } catch (const Error& error) {
        throw Error(tried + error.what());
    }
}

Results parse_results(const std::string& text, const std::string& origin) {
    Results results;
    read_json_of_results(text, origin, [&results](const Json& json) { results = results_of_json(json); });
    return results;
}

std::string read_file_of_results(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        throw_errno(errno, "read " + path);
    }
    errno = 0;
    const std::string text{std::istreambuf_iterator(file), {}};
    if (file.bad()) {
        throw_errno(errno != 0 ? errno : EIO, "read " + path);
    }
    return text;
}

Results read_results(const std::string& path) {
    return parse_results(read_file_of_results(path), path);
}

} // namespace vmm::bench
