// `vmm snapshot`.
#pragma once

#include "vmm/cli/commands.hpp"

namespace vmm {

/// Runs the command and returns the exit code. Throws Error if there is no snapshot, or if it is incomplete.
int run_snapshot(const SnapshotCommand& command);

} // namespace vmm
