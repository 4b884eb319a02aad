// Checks that the memory of a snapshot is as it was saved.
#pragma once

#include <cstdint>
#include <functional>

#include "vmm/state/snapshot_reader.hpp"

namespace vmm {

/// It is called with the number of bytes that are checked and with the total, after each chunk. It may be called on any
/// thread, but never on two at once. It must not throw.
using VerifyProgress = std::function<void(std::uint64_t done_bytes, std::uint64_t all_bytes)>;

/// Reads the memory file on `threads` threads (1 or more) and compares each chunk's checksum. For a hole it reads only
/// what the file has there, which must be zeros. Throws Error if a chunk differs, and names the first one; or if the
/// file cannot be read.
void verify_memory(const SnapshotReader& snapshot, unsigned threads, const VerifyProgress& progress = {});

} // namespace vmm
