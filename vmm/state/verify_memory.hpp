// Whether the memory of a snapshot is as it was saved.
#pragma once

#include <cstdint>
#include <functional>

#include "vmm/state/snapshot_reader.hpp"

namespace vmm {

/// Called with how many bytes of how many are checked: after each chunk, from any thread, but never from two at once.
/// It throws nothing.
using VerifyProgress = std::function<void(std::uint64_t done_bytes, std::uint64_t all_bytes)>;

/// Reads the memory file in `threads` threads (1 or more) and compares each chunk's checksum. Of a hole it looks only
/// at what the file has there. Throws Error: a chunk differs, of which the first is named; or the file cannot be read.
void verify_memory(const SnapshotReader& snapshot, unsigned threads, const VerifyProgress& progress = {});

} // namespace vmm
