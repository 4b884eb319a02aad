// What the files of all benchmarks have in common (docs/bench.md).
#pragma once

#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

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

/// Every figure; null: the run has it not.
template <typename Figure, std::size_t count>
[[nodiscard]] nlohmann::ordered_json to_json_parts(const FigureValues<Figure, count>& values,
                                                   const std::array<FigureFacts, count>& facts) {
    auto json = nlohmann::ordered_json::object();
    for (std::size_t i = 0; i < count; ++i) {
        json[std::string(facts[i].name)] = or_null(values.values()[i]);
    }
    return json;
}

} // namespace vmm::bench
