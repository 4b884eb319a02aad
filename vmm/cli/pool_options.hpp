// The options of `vmm pool`.
#pragma once

#include <vector>

#include "vmm/cli/option.hpp"

namespace vmm {

/// Rows of the table of options.
[[nodiscard]] std::vector<Option> pool_options();

} // namespace vmm
