// The options of `vmm run`.
#pragma once

#include <vector>

#include "vmm/cli/option.hpp"

namespace vmm {

/// The rows of the table that `vmm run` has, in the order of its help.
[[nodiscard]] std::vector<Option> run_options();

} // namespace vmm
