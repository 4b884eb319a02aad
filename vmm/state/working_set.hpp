// The parts of a snapshot's memory that its guest needs first.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace vmm {

class SnapshotReader;

/// Chunks of a snapshot's memory (MemoryLayout::chunk()), in the order in which a guest that went on from the snapshot
/// needed them. This is only advice: the guest gets all of its memory in any case.
using WorkingSet = std::vector<std::size_t>;

/// Returns the set as JSON, ending in a newline.
[[nodiscard]] std::string to_json(const WorkingSet& set);
/// Reads the working set in `text`, which need not be trusted: each chunk must be less than `chunks`, and may occur
/// once. Throws Error if `text` is not what to_json() writes.
[[nodiscard]] WorkingSet parse_working_set(std::string_view text, std::size_t chunks);

/// Reads the working set that is kept with `snapshot`; empty if there is none. Throws Error if it cannot be read, or is
/// damaged.
[[nodiscard]] WorkingSet read_working_set(const SnapshotReader& snapshot);
/// Stores `set` with `snapshot`, and replaces an older one. After a failure the file is either complete or absent.
/// Throws Error.
void write_working_set(const SnapshotReader& snapshot, const WorkingSet& set);

} // namespace vmm
