// How much memory is left for a guest by the host, the control groups and the limits of the process.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kvm/host/cgroup.hpp"

namespace vmm {

/// Figures of /proc/meminfo, in bytes. A figure that cannot be read is nothing; this means neither zero nor unlimited.
struct HostMemory {
    std::optional<std::uint64_t> total_bytes;
    std::optional<std::uint64_t> available_bytes; ///< what can be used without swapping (MemAvailable)
    std::optional<std::uint64_t> free_swap_bytes;
};

[[nodiscard]] HostMemory read_host_memory(const std::string& meminfo = "/proc/meminfo");

/// The limits of one control group, in bytes (Documentation/admin-guide/cgroup-v2.rst, "Memory"; cgroup-v1/memory.rst).
/// A limit is nothing if there is none, or if it cannot be read.
struct MemoryGroup {
    std::string limit_file; ///< memory.max, or memory.limit_in_bytes
    std::optional<std::uint64_t> limit;
    std::string high_file;
    std::optional<std::uint64_t> high;       ///< above it, the group is throttled; version 2 only
    std::optional<std::uint64_t> swap_limit; ///< of swap alone, in both versions
    std::uint64_t used = 0;                  ///< without the cache of files, which the kernel can take back
    std::uint64_t swap_used = 0;
    bool counts_huge_pages = false; ///< whether pages of a pool count, too

    /// The first is what is left of the smaller limit, the second what is left of memory.high. Nothing if there is no
    /// such limit.
    [[nodiscard]] std::optional<std::uint64_t> left() const noexcept;
    [[nodiscard]] std::optional<std::uint64_t> left_below_high() const noexcept;
};

/// The memory groups of this process, its own group first. Groups without any limit are left out.
[[nodiscard]] std::vector<MemoryGroup> read_memory_groups(const CgroupRoots& roots = {});

/// The smallest limit on memory among the control groups this process is in, in bytes; nothing if there is none.
[[nodiscard]] std::optional<std::uint64_t> read_memory_cgroup_limit(const CgroupRoots& roots = {});

/// A limit of the process on its mappings (setrlimit(2)), and how much of it is used now, in bytes.
struct MappingLimit {
    const char* name = "";    ///< "RLIMIT_AS"
    const char* command = ""; ///< "ulimit -v"
    std::uint64_t limit = 0;
    std::uint64_t used = 0;
};

/// The facts that decide whether there is memory for a guest.
struct MemoryFacts {
    HostMemory host;
    std::vector<MemoryGroup> groups;
    std::vector<MappingLimit> mapping_limits; ///< those that are set
};

/// The folders from which the facts are read.
struct MemorySources {
    std::string proc = "/proc";
    CgroupRoots cgroups;
};

[[nodiscard]] MemoryFacts read_memory_facts(const MemorySources& sources = {});

/// What a guest takes of the host's memory, in bytes. Pages of a pool are reserved already; they have members of their
/// own and are not in the others, except in `mapped`.
struct MemoryNeed {
    std::uint64_t guest = 0;       ///< all of its memory
    std::uint64_t guest_ahead = 0; ///< how much of it is made resident before the guest runs
    std::uint64_t beside = 0;      ///< tables, the kernel's memory and this program's, when the guest starts
    std::uint64_t beside_all = 0;  ///< the same when all of the guest's memory is resident
    std::uint64_t mapped = 0;      ///< address space, pages of a pool included
    std::uint64_t pool = 0;        ///< pages of a pool of huge pages, for groups that count them
    std::uint64_t pool_ahead = 0;  ///< how many of them are taken before the guest runs
    bool locked = false;           ///< whether guest memory is never swapped out

    [[nodiscard]] std::uint64_t ahead() const noexcept { return guest_ahead + beside; }
    [[nodiscard]] std::uint64_t all() const noexcept { return guest + beside_all; }
};

struct MemoryVerdict {
    std::string refusal;               ///< why it is too little, and what to do, after "cannot ...: "; empty: it fits
    std::vector<std::string> warnings; ///< problems that the guest may meet later, a sentence each
};

/// Decides whether there is memory for `need`. Memory that is made resident ahead must fit without swapping; otherwise
/// the kernel kills or throttles the process without telling it. Memory that the guest may touch later can only give a
/// warning. A fact that is not known gives neither.
[[nodiscard]] MemoryVerdict judge_memory(const MemoryNeed& need, const MemoryFacts& facts);

/// How much more memory the host and the groups together can give without swapping, in bytes; nothing: not known.
[[nodiscard]] std::optional<std::uint64_t> available_bytes(const MemoryFacts& facts) noexcept;

} // namespace vmm
