// How much memory this host has.
#pragma once

#include <cstdint>
#include <optional>

#include "kvm/cgroup.hpp"

namespace vmm {

/// From /proc/meminfo, in bytes.
struct HostMemory {
    std::uint64_t total_bytes = UINT64_MAX;     ///< as much as there may be where it cannot be read
    std::uint64_t available_bytes = UINT64_MAX; ///< what can be had without swapping (MemAvailable)
};

[[nodiscard]] HostMemory read_host_memory();

/// The smallest limit on memory among the control groups this process is in, in bytes; nothing where there is none
/// (Documentation/admin-guide/cgroup-v2.rst, memory.max; v1: memory.limit_in_bytes).
[[nodiscard]] std::optional<std::uint64_t> read_memory_cgroup_limit(const CgroupRoots& roots = {});

} // namespace vmm
