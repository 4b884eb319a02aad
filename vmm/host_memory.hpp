// How much memory this host has.
#pragma once

#include <cstdint>

namespace vmm {

/// From /proc/meminfo, in bytes.
struct HostMemory {
    std::uint64_t total_bytes = UINT64_MAX;     ///< as much as there may be where it cannot be read
    std::uint64_t available_bytes = UINT64_MAX; ///< what can be had without swapping (MemAvailable)
};

[[nodiscard]] HostMemory read_host_memory();

} // namespace vmm
