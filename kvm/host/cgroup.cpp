#include "kvm/host/cgroup.hpp"

#include <algorithm>
#include <fstream>
#include <system_error>

namespace vmm {

namespace {

/// The folder of `group` (absolute within the hierarchy) and all folders above it, up to `mount`.
std::vector<std::filesystem::path> folders_of(const std::filesystem::path& mount, const std::filesystem::path& group) {
    std::vector<std::filesystem::path> folders{mount};
    // The kernel shows a group outside of the process's cgroup namespace as "/../name". No folder of it is visible.
    if (std::ranges::find(group, "..") == group.end()) {
        for (const std::filesystem::path& name : group.relative_path()) {
            if (!name.empty()) {
                folders.push_back(folders.back() / name);
            }
        }
    }
    std::ranges::reverse(folders);
    return folders;
}

/// The mount of version 2. If version 1 is mounted, too, version 2 has a folder of its own below it.
std::filesystem::path version_2_mount(const std::filesystem::path& mount) {
    std::error_code ignored;
    const std::filesystem::path unified = mount / "unified";
    return std::filesystem::exists(unified / "cgroup.controllers", ignored) ? unified : mount;
}

} // namespace

std::vector<CgroupLineage> cgroup_lineages(std::string_view controller, const CgroupRoots& roots) {
    // A line is "number:controllers:group". For version 2 it is "0::group".
    std::ifstream groups(roots.self);
    std::vector<CgroupLineage> lineages;
    const std::string wanted = "," + std::string(controller) + ",";
    const std::filesystem::path mount = roots.mount;
    std::string line;
    while (std::getline(groups, line)) {
        const std::size_t first = line.find(':');
        const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
        if (second == std::string::npos) {
            continue;
        }
        const std::string controllers = line.substr(first + 1, second - first - 1);
        const std::string group = line.substr(second + 1);
        if (controllers.empty()) {
            lineages.push_back({CgroupLineage::Version::k2, folders_of(version_2_mount(mount), group)});
        } else if (("," + controllers + ",").find(wanted) != std::string::npos) {
            lineages.push_back({CgroupLineage::Version::k1, folders_of(mount / controller, group)});
        }
    }
    return lineages;
}

bool cgroup_memory_counts_huge_pages(const CgroupRoots& roots) {
    // A line ends in "- cgroup2 SOURCE OPTION,OPTION".
    std::ifstream mounts(roots.mounts);
    for (std::string line; std::getline(mounts, line);) {
        const std::size_t type = line.find(" - cgroup2 ");
        if (type != std::string::npos && line.find("memory_hugetlb_accounting", type) != std::string::npos) {
            return true;
        }
    }
    return false;
}

std::optional<std::uint64_t> read_cgroup_number(const std::filesystem::path& file) {
    constexpr std::uint64_t kNoLimit = 1ULL << 62;
    std::ifstream stream(file);
    std::uint64_t number = 0;
    return stream >> number && number < kNoLimit ? std::optional(number) : std::nullopt;
}

} // namespace vmm
