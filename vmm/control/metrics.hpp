// A machine's figures as documents.
#pragma once

#include <cstdint>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include "vmm/statistics.hpp"

namespace vmm::control {

/// As the schema Statistics of the OpenAPI document.
[[nodiscard]] nlohmann::ordered_json to_json(const Statistics& statistics);

/// As text for Prometheus (its exposition format, version 0.0.4).
[[nodiscard]] std::string to_prometheus(const Statistics& statistics, std::uint64_t memory_bytes);

} // namespace vmm::control
