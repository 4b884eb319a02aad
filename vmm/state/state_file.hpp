// The state of a machine as bytes: the file `state` of a snapshot, and what a migration sends last.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "vmm/state/snapshot_state.hpp"

namespace vmm {

/// The most bytes that a state has.
inline constexpr std::size_t kMostStateBytes = 64 * kMiB;

/// `state` as bytes (docs/snapshots.md). Equal states have equal bytes.
/// Throws Error: decode_state() would refuse it.
[[nodiscard]] std::vector<std::byte> encode_state(const SnapshotState& state);

/// The state in `bytes`, which may be any. What comes back is of bounded size, and its memory is as MemoryLayout has
/// it; whether there can be such a machine is checked by those who go on from it. Throws Error: `bytes` are no state,
/// are damaged, or are of a version that is not known here.
[[nodiscard]] SnapshotState decode_state(std::span<const std::byte> bytes);

} // namespace vmm
