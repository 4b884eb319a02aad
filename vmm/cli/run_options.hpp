// The options of `vmm run`.
#pragma once

#include <vector>

#include "vmm/cli/option.hpp"

namespace vmm {

/// The rows of the option table for `vmm run`, in the order of its help.
[[nodiscard]] std::vector<Option> run_options();

} // namespace vmm
