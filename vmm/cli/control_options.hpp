// The rows of the option table for `vmm ctl`, made from the table of verbs, and the requests that they make.
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

/// Returns the request that `command` makes. Throws Error if its words and options are not those of its verb.
[[nodiscard]] ControlRequest request_of(const ControlCommand& command);

} // namespace vmm
