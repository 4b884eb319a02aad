// Describes a snapshot, for people and for programs.
#pragma once

#include <string>

#include "vmm/state/snapshot_reader.hpp"

namespace vmm {

/// Returns lines with a name and a value each. They contain nothing that a terminal would take for a command.
[[nodiscard]] std::string snapshot_info_text(const SnapshotReader& snapshot);

/// Returns the same as JSON (docs/snapshots.md), with a newline at its end.
[[nodiscard]] std::string snapshot_info_json(const SnapshotReader& snapshot);

} // namespace vmm
