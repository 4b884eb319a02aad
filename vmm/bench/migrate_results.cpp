#include "vmm/bench/migrate_results.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "vmm/bench/json_parts.hpp"
#include "vmm/bench/migrate_aims.hpp"

namespace vmm::bench {

namespace {

using Json = nlohmann::ordered_json;

Json case_json(const MigrateResult& result) {
    Json statistics = statistics_json(result.samples, kMigrateFigures);
    for (std::size_t i = 0; i < kMigrateFigures.size(); ++i) {
        if (const auto p99 = result.percentile(static_cast<MigrateFigure>(i), 99)) {
            statistics[std::string(kMigrateFigures.at(i).name)]["p99"] = *p99;
        }
    }
    return {{"case",
             {{"mode", to_string(result.of.mode)},
              {"page_size", vmm::to_string(result.of.page_size)},
              {"vcpus", result.of.vcpus},
              {"link", to_string(result.of.link)},
              {"streams", result.of.streams},
              {"prefault", to_string(result.of.fill)}}},
            {"failure", result.failure},
            {"stayed_because", result.stayed_because},
            {"statistics", std::move(statistics)},
            {"runs", runs_json(result.samples, kMigrateFigures)}};
}

} // namespace

std::optional<Statistics> MigrateResult::statistics(MigrateFigure figure) const {
    return statistics_of(samples, figure);
}

std::optional<double> MigrateResult::percentile(MigrateFigure figure, double percent) const {
    const std::vector<double> values = values_of(samples, figure);
    return values.empty() ? std::nullopt : std::optional(bench::percentile(values, percent));
}

bool MigrateResults::any_failed() const noexcept {
    return std::ranges::any_of(cases, [](const MigrateResult& each) { return !each.failure.empty(); });
}

std::string to_json(const MigrateResults& results) {
    const MigrateSettings& settings = results.settings;
    Json json;
    json["schema"] = MigrateResults::kSchema;
    json["kind"] = "vmm bench migrate";
    json["version"] = results.version;
    json["host"] = to_json_parts(results.host);
    json["settings"] = {{"memory_bytes", settings.memory_bytes},
                        {"modes", names_json(settings.lists.modes)},
                        {"page_sizes", names_json(settings.lists.page_sizes)},
                        {"vcpus", settings.lists.vcpus},
                        {"links", names_json(settings.lists.links)},
                        {"streams", settings.lists.streams},
                        {"prefault", names_json(settings.lists.fills)},
                        {"every", settings.every},
                        {"runs", settings.runs},
                        {"workers", settings.workers},
                        {"downtime_ms", settings.downtime_ms},
                        {"give_up_seconds", settings.give_up_seconds},
                        {"warm", settings.warm}};
    json["harness"] = to_json_parts(results.harness);
    json["load"] = {{"before", or_null(results.load_before)}, {"after", or_null(results.load_after)}};
    json["complete"] = results.complete;
    json["aims"] = to_json_parts(migrate_aims(results));
    json["cases"] = Json::array();
    for (const MigrateResult& result : results.cases) {
        json["cases"].push_back(case_json(result));
    }
    // A host's name may have bytes that are not UTF-8.
    return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

} // namespace vmm::bench
