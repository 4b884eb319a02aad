// The rows of the table for `vmm ctl`, made from the table of verbs, and what is asked of a machine by them.
#pragma once

#include <string>
#include <vector>

#include "vmm/cli/commands.hpp"
#include "vmm/cli/option.hpp"

namespace vmm {

[[nodiscard]] std::vector<Option> control_options();

/// The text below the help of `vmm ctl`: the verbs, and the exit status.
[[nodiscard]] const std::string& control_notes();

/// A request to a control socket.
struct ControlRequest {
    std::string method;
    std::string target; ///< the path, with a query if there is one
    std::string body{}; ///< JSON; empty: none
};

/// What `command` asks for. Throws Error: its words and options are not those of its verb.
[[nodiscard]] ControlRequest request_of(const ControlCommand& command);

} // namespace vmm
