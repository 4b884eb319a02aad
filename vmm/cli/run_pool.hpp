// `vmm pool`: a service that keeps memory ready for guests.
#pragma once

#include "vmm/cli/commands.hpp"

namespace vmm {

/// Serves until a signal ends it, and returns the exit status. Throws Error.
[[nodiscard]] int run_pool(const PoolCommand& command);

} // namespace vmm
