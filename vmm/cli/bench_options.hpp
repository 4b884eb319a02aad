// The options of `vmm bench` and `vmm bench compare`.
#pragma once

#include <vector>

#include "vmm/cli/option.hpp"

namespace vmm {

/// The rows of the option table for `vmm bench`, then those for `vmm bench compare`, in the order of their help.
[[nodiscard]] std::vector<Option> bench_options();

} // namespace vmm
