// `vmm snapshot`.
#pragma once

#include "vmm/cli/commands.hpp"

namespace vmm {

/// Returns the exit code. Throws Error: there is no snapshot, or it is not whole.
int run_snapshot(const SnapshotCommand& command);

} // namespace vmm
