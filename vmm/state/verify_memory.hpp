// Whether the memory of a snapshot is as it was saved.
#pragma once

#include <cstdint>
#include <functional>

#include "vmm/state/snapshot_reader.hpp"

namespace vmm {

/// Called with how many bytes of how many are checked, from one thread at a time, some ten times a second.
using VerifyProgress = std::function<void(std::uint64_t done_bytes, std::uint64_t all_bytes)>;

/// Reads all of the memory file in `threads` threads (1 or more) and compares each chunk's checksum.
/// Throws Error: a chunk differs, or the file cannot be read. The first chunk that differs is named.
void verify_memory(const SnapshotReader& snapshot, unsigned threads, const VerifyProgress& progress);

} // namespace vmm
