// The state of a machine as bytes: the file `state` of a snapshot, and the last message of a migration's source.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "vmm/state/snapshot_state.hpp"

namespace vmm {

/// The most bytes that a state may have.
inline constexpr std::size_t kMostStateBytes = 64 * kMiB;

/// Returns `state` as bytes (docs/snapshots.md). Equal states have equal bytes. Throws Error if decode_state() would
/// refuse it.
[[nodiscard]] std::vector<std::byte> encode_state(const SnapshotState& state);

/// Reads the state in `bytes`, which need not be trusted. The result has a bounded size, and its memory is as
/// MemoryLayout requires. Code that goes on from it must still check whether such a machine can exist. Throws Error if
/// `bytes` are no state, are damaged, or are of an unknown version.
[[nodiscard]] SnapshotState decode_state(std::span<const std::byte> bytes);

} // namespace vmm
