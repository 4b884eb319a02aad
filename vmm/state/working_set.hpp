// Which parts of a snapshot's memory its guest needs first.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace vmm {

class SnapshotReader;

/// Chunks of a snapshot's memory (MemoryLayout::chunk()), in the order in which a guest needed them that went on from
/// it. It is advice: whatever it says, the guest gets all of its memory.
using WorkingSet = std::vector<std::size_t>;

/// As JSON, ending in a newline.
[[nodiscard]] std::string to_json(const WorkingSet& set);
/// The working set in `text`, which nobody trusts: each chunk is less than `chunks`, and comes once. Throws Error: it
/// is not what to_json() writes.
[[nodiscard]] WorkingSet parse_working_set(std::string_view text, std::size_t chunks);

/// The one that is kept with `snapshot`; empty if there is none. Throws Error: it cannot be read, or is damaged.
[[nodiscard]] WorkingSet read_working_set(const SnapshotReader& snapshot);
/// Keeps `set` with `snapshot`, in place of another one. It is whole or not there. Throws Error.
void write_working_set(const SnapshotReader& snapshot, const WorkingSet& set);

} // namespace vmm
