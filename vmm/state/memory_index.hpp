// The index of a snapshot's memory file, chunk by chunk.
#pragma once

#include <cstdint>
#include <vector>

namespace vmm {

/// The entry of one chunk (MemoryLayout::chunk()).
struct MemoryChunk {
    bool is_hole = true;      ///< all of it is zero, and the file has nothing there
    std::uint32_t crc32c = 0; ///< of the memory in it; 0 for a hole
    std::uint8_t file = 0;    ///< which file has it (MemorySource::files): 0 is the snapshot's own, 1 its base's

    friend bool operator==(const MemoryChunk&, const MemoryChunk&) = default;
};

/// The index has MemoryLayout::chunks() entries.
using MemoryIndex = std::vector<MemoryChunk>;

} // namespace vmm
