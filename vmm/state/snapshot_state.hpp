// The content of a snapshot's state file, as a value.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "vmm/state/machine_state.hpp"
#include "vmm/state/memory_index.hpp"

namespace vmm {

/// When and where a state was saved, for people and for messages. Nothing depends on it.
struct SnapshotOrigin {
    std::int64_t created_at = 0; ///< seconds since 1970, UTC
    std::string vmm_version;     ///< "0.1.0"; at most 64 bytes, as the others
    std::string kernel_release;  ///< "6.12.5"
    std::string cpu_vendor;      ///< "GenuineIntel"
    std::string cpu_model;       ///< the processor's name; empty: it has none

    friend bool operator==(const SnapshotOrigin&, const SnapshotOrigin&) = default;
};

/// Returns the origin for this process and this host at this time.
[[nodiscard]] SnapshotOrigin origin_here();

/// The snapshot on which another one builds. It holds some of the other's memory.
struct SnapshotBase {
    std::string path; ///< of its directory, from the directory of the other one if it does not begin with /
    std::uint64_t state_bytes = 0;  ///< the size of its file `state`, which says what it is
    std::uint32_t state_crc32c = 0; ///< the checksum of that file

    friend bool operator==(const SnapshotBase&, const SnapshotBase&) = default;
};

struct SnapshotState {
    SnapshotOrigin origin;
    MachineState machine;
    /// The index of the memory file; nothing if memory is kept elsewhere, as in a migration.
    std::optional<MemoryIndex> memory;
    /// The snapshot that holds the chunks whose MemoryChunk::file is 1; nothing: all chunks are in its own file.
    std::optional<SnapshotBase> base;
};

} // namespace vmm
