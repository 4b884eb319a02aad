// The results of a benchmark as JSON values, for the files that contain them.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "vmm/bench/results.hpp"

namespace vmm::bench {

[[nodiscard]] nlohmann::ordered_json to_json_parts(const Cell& cell);
[[nodiscard]] nlohmann::ordered_json to_json_parts(const Results& results);

/// The reverse of to_json_parts(). Throws Error, and nlohmann::json::exception, for other JSON.
[[nodiscard]] Cell cell_of_json(const nlohmann::ordered_json& json);
[[nodiscard]] Results results_of_json(const nlohmann::ordered_json& json);

/// Calls `take` with the JSON of `text`. If it is not JSON, or if `take` throws Error or nlohmann::json::exception, it
/// throws Error, which names `origin`.
void read_json_of_results(const std::string& text, const std::string& origin,
                          const std::function<void(const nlohmann::ordered_json&)>& take);

/// The content of a file. Throws Error.
[[nodiscard]] std::string read_file_of_results(const std::string& path);

} // namespace vmm::bench
