// How a snapshot of a machine is taken.
#pragma once

#include <stop_token>

#include "vmm/machine/machine_to_save.hpp"
#include "vmm/snapshot.hpp"

namespace vmm {

/// Takes a snapshot. Memory is written while the guest runs; then the guest stands still while its state, and the
/// memory that it has changed since, are written. Whoever else pauses or resumes the machine meanwhile waits. If it
/// fails or `stop` is requested, it removes what it has written and lets the guest go on if the guest ran before.
/// Throws Error.
[[nodiscard]] SnapshotReport take_snapshot(const MachineToSave& machine, const SnapshotOptions& options,
                                           const std::stop_token& stop);

} // namespace vmm
