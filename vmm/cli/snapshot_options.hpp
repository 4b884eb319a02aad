// The options of `vmm snapshot`.
#pragma once

#include <vector>

#include "vmm/cli/option.hpp"

namespace vmm {

/// Rows of the table of options.
[[nodiscard]] std::vector<Option> snapshot_options();

} // namespace vmm
