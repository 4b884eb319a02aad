// The names of log levels.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "vmm/log.hpp"

namespace vmm::control {

inline constexpr std::array kLogLevels{
    std::pair(LogLevel::kDebug, std::string_view("debug")), std::pair(LogLevel::kInfo, std::string_view("info")),
    std::pair(LogLevel::kWarning, std::string_view("warning")), std::pair(LogLevel::kError, std::string_view("error"))};

/// "debug", "info", "warning", "error"
[[nodiscard]] inline std::vector<std::string> log_level_names() {
    std::vector<std::string> names;
    for (const auto& [level, name] : kLogLevels) {
        names.emplace_back(name);
    }
    return names;
}

[[nodiscard]] inline std::string name_of(LogLevel wanted) {
    for (const auto& [level, name] : kLogLevels) {
        if (level == wanted) {
            return std::string(name);
        }
    }
    return "?";
}

[[nodiscard]] inline std::optional<LogLevel> log_level_of(std::string_view wanted) {
    for (const auto& [level, name] : kLogLevels) {
        if (name == wanted) {
            return level;
        }
    }
    return std::nullopt;
}

} // namespace vmm::control
