#include "vmm/bench/state_results.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "vmm/bench/json_parts.hpp"
#include "vmm/bench/state_aims.hpp"

namespace vmm::bench {

namespace {

using Json = nlohmann::ordered_json;

Json case_json(const StateResult& result) {
    const Json mode = result.of.mode ? Json(vmm::to_string(*result.of.mode)) : Json(nullptr);
    return {{"case",
             {{"scenario", to_string(result.of.scenario)},
              {"restore_mode", mode},
              {"page_size", vmm::to_string(result.of.page_size)}}},
            {"failure", result.failure},
            {"statistics", statistics_json(result.samples, kStateFigures)},
            {"runs", runs_json(result.samples, kStateFigures)}};
}

} // namespace

std::optional<Statistics> StateResult::statistics(StateFigure figure) const {
    return statistics_of(samples, figure);
}

const StateResult* StateResults::find(const StateCase& of) const noexcept {
    const auto found = std::ranges::find_if(cases, [&](const StateResult& each) { return each.of == of; });
    return found == cases.end() ? nullptr : &*found;
}

bool StateResults::any_failed() const noexcept {
    return std::ranges::any_of(cases, [](const StateResult& each) { return !each.failure.empty(); });
}

std::string to_json(const StateResults& results) {
    Json json;
    json["schema"] = StateResults::kSchema;
    json["kind"] = "vmm bench state";
    json["version"] = results.version;
    json["host"] = to_json_parts(results.host);
    json["settings"] = {{"memory_bytes", results.settings.memory_bytes},
                        {"vcpus", results.settings.vcpus},
                        {"workers", results.settings.workers},
                        {"page_sizes", names_json(results.settings.page_sizes)},
                        {"restore_modes", names_json(results.settings.modes)},
                        {"runs", results.settings.runs},
                        {"clones", results.settings.clones},
                        {"warm", results.settings.warm}};
    json["harness"] = to_json_parts(results.harness);
    json["load"] = {{"before", or_null(results.load_before)}, {"after", or_null(results.load_after)}};
    json["complete"] = results.complete;
    json["aims"] = to_json_parts(state_aims(results));
    json["cases"] = Json::array();
    for (const StateResult& result : results.cases) {
        json["cases"].push_back(case_json(result));
    }
    // A host's name may have bytes that are not UTF-8.
    return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

} // namespace vmm::bench
