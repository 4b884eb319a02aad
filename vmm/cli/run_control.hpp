// `vmm ctl`, from its options to its exit status.
#pragma once

#include <string>

#include <nlohmann/json_fwd.hpp>

#include "vmm/cli/commands.hpp"

namespace vmm {

/// Sends a request to a machine, and prints the answer. Returns the exit status of the program. Throws Error if
/// standard output cannot be written. Threads: the main one.
[[nodiscard]] int run_control(const ControlCommand& command);

/// Returns an answer as lines for people: "memory bytes: 536870912". It ends in a newline unless it is empty.
[[nodiscard]] std::string in_words(const nlohmann::ordered_json& answer);

} // namespace vmm
