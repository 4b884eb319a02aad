// The parts that the files of all benchmarks have in common (docs/bench.md).
#pragma once

#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "vmm/bench/figure_values.hpp"
#include "vmm/bench/harness.hpp"
#include "vmm/bench/host_facts.hpp"
#include "vmm/bench/statistics.hpp"

namespace vmm::bench {

template <typename Value>
[[nodiscard]] nlohmann::ordered_json or_null(const std::optional<Value>& value) {
    return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json(nullptr);
}

[[nodiscard]] nlohmann::ordered_json to_json_parts(const HostFacts& host);
[[nodiscard]] nlohmann::ordered_json to_json_parts(const Harness& harness);
[[nodiscard]] nlohmann::ordered_json to_json_parts(const Statistics& statistics);

/// The values of all figures; null: the run does not have it.
template <typename Figure, std::size_t count>
[[nodiscard]] nlohmann::ordered_json to_json_parts(const FigureValues<Figure, count>& values,
                                                   const std::array<FigureFacts, count>& facts) {
    auto json = nlohmann::ordered_json::object();
    for (std::size_t i = 0; i < count; ++i) {
        json[std::string(facts[i].name)] = or_null(values.values()[i]);
    }
    return json;
}

/// The statistics of every figure that some run has.
template <typename Figure, std::size_t count>
[[nodiscard]] nlohmann::ordered_json statistics_json(const std::vector<FigureValues<Figure, count>>& samples,
                                                     const std::array<FigureFacts, count>& facts) {
    auto json = nlohmann::ordered_json::object();
    for (std::size_t i = 0; i < count; ++i) {
        if (const auto described = statistics_of(samples, static_cast<Figure>(i))) {
            json[std::string(facts[i].name)] = to_json_parts(*described);
        }
    }
    return json;
}

/// The figures of each run.
template <typename Figure, std::size_t count>
[[nodiscard]] nlohmann::ordered_json runs_json(const std::vector<FigureValues<Figure, count>>& samples,
                                               const std::array<FigureFacts, count>& facts) {
    auto json = nlohmann::ordered_json::array();
    for (const FigureValues<Figure, count>& sample : samples) {
        json.push_back(to_json_parts(sample, facts));
    }
    return json;
}

/// The names of the values, made by their to_string().
template <typename Value>
[[nodiscard]] nlohmann::ordered_json names_json(const std::vector<Value>& values) {
    auto names = nlohmann::ordered_json::array();
    for (const Value& value : values) {
        names.push_back(std::string(to_string(value)));
    }
    return names;
}

} // namespace vmm::bench
