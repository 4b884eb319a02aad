// How a snapshot of a machine is taken.
#pragma once

#include <functional>
#include <stop_token>

#include "vmm/config.hpp"
#include "vmm/machine/first_state.hpp"
#include "vmm/machine/hardware.hpp"
#include "vmm/machine/machine_pause.hpp"
#include "vmm/snapshot.hpp"

namespace vmm {

/// The parts of a machine that a snapshot is taken of. All of them outlive it.
struct SnapshotSource {
    const Config& config;
    Hardware& hardware;
    MachinePause& pause;
    const FirstState& first;
};

/// Takes a snapshot: memory is written while the guest runs, and then, while it stands still, what has changed since,
/// and the state. Whoever else pauses or resumes the machine meanwhile waits. Removes what it has written, and lets the
/// guest go on if it did before, where it fails or `stop` is requested. Throws Error.
[[nodiscard]] SnapshotReport take_snapshot(const SnapshotSource& source, const SnapshotOptions& options,
                                           const std::stop_token& stop);

} // namespace vmm
