// The control groups this process is in, and the numbers in their files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace vmm {

/// Where control groups are looked for.
struct CgroupRoots {
    std::string self = "/proc/self/cgroup";      ///< which groups a process is in (cgroups(7))
    std::string mount = "/sys/fs/cgroup";        ///< where the hierarchies are
    std::string mounts = "/proc/self/mountinfo"; ///< how they are mounted (proc_pid_mountinfo(5))
};

/// The group that this process is in, in one hierarchy, and the groups above it.
struct CgroupLineage {
    enum class Version { k1, k2 };
    Version version = Version::k2;
    /// The folders from the process's own group up to the mount of the hierarchy. A folder may be missing: a container
    /// sees the mount as its own group, but may be told the group's whole path.
    std::vector<std::filesystem::path> folders;
};

/// Every hierarchy in which `controller` ("memory", "hugetlb") may limit this process: the hierarchy of version 2, and
/// the one of version 1 that has the controller. Empty if groups cannot be read. Throws nothing but std::bad_alloc.
[[nodiscard]] std::vector<CgroupLineage> cgroup_lineages(std::string_view controller, const CgroupRoots& roots = {});

/// True if groups of version 2 count huge pages of a pool as memory, too: the mount option memory_hugetlb_accounting
/// (Documentation/admin-guide/cgroup-v2.rst, Linux 6.6).
[[nodiscard]] bool cgroup_memory_counts_huge_pages(const CgroupRoots& roots = {});

/// The number in a group's file. Nothing if the file does not exist or says that there is no limit: "max" in version 2
/// (Documentation/admin-guide/cgroup-v2.rst), a number near 2^63 in version 1.
[[nodiscard]] std::optional<std::uint64_t> read_cgroup_number(const std::filesystem::path& file);

} // namespace vmm
