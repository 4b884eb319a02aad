// A machine's figures as documents.
#pragma once

#include <cstdint>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include "vmm/statistics.hpp"

namespace vmm::control {

/// Returns the JSON of the schema Statistics in the OpenAPI document.
[[nodiscard]] nlohmann::ordered_json to_json(const Statistics& statistics);

/// Returns the text for Prometheus (its exposition format, version 0.0.4).
[[nodiscard]] std::string to_prometheus(const Statistics& statistics, std::uint64_t memory_bytes);

} // namespace vmm::control
