// What is in a snapshot, for people and for programs.
#pragma once

#include <string>

#include "vmm/state/snapshot_reader.hpp"

namespace vmm {

/// Lines with a name and a value each. Nothing in them is what a terminal would obey.
[[nodiscard]] std::string snapshot_info_text(const SnapshotReader& snapshot);

/// The same as JSON (docs/snapshots.md), and a newline.
[[nodiscard]] std::string snapshot_info_json(const SnapshotReader& snapshot);

} // namespace vmm
