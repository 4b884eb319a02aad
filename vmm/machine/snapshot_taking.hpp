// How a snapshot of a machine is taken.
#pragma once

#include <stop_token>

#include "vmm/machine/machine_to_save.hpp"
#include "vmm/snapshot.hpp"

namespace vmm {

/// Takes a snapshot: memory is written while the guest runs, and then, while it stands still, what has changed since,
/// and the state. Whoever else pauses or resumes the machine meanwhile waits. Removes what it has written, and lets the
/// guest go on if it did before, where it fails or `stop` is requested. Throws Error.
[[nodiscard]] SnapshotReport take_snapshot(const MachineToSave& machine, const SnapshotOptions& options,
                                           const std::stop_token& stop);

} // namespace vmm
