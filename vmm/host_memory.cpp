#include "vmm/host_memory.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>

namespace vmm {

HostMemory read_host_memory() {
    HostMemory memory;
    std::ifstream meminfo("/proc/meminfo");
    std::string name;
    std::uint64_t kib = 0;
    std::string rest;
    while (meminfo >> name >> kib && std::getline(meminfo, rest)) {
        if (name == "MemTotal:") {
            memory.total_bytes = kib * 1024;
        } else if (name == "MemAvailable:") {
            memory.available_bytes = kib * 1024;
        }
    }
    return memory;
}

namespace {

/// The smallest number in a file called `name` in the group's folder or one above it, down to `root`. "max" is no
/// number.
std::optional<std::uint64_t> smallest_limit(const std::filesystem::path& root, const std::string& group,
                                            const char* name) {
    constexpr std::uint64_t kNoLimit = 1ULL << 62; // v1 says "no limit" by a number near 2^63
    std::optional<std::uint64_t> smallest;
    std::filesystem::path folder = root / std::filesystem::path(group).relative_path();
    for (;;) {
        std::ifstream file(folder / name);
        std::uint64_t limit = 0;
        if (file >> limit && limit < kNoLimit) {
            smallest = std::min(smallest.value_or(limit), limit);
        }
        if (folder == root || !folder.has_relative_path() || folder == folder.parent_path()) {
            return smallest;
        }
        folder = folder.parent_path();
    }
}

} // namespace

std::optional<std::uint64_t> read_memory_cgroup_limit(const std::string& proc_self_cgroup, const std::string& mount) {
    // A line is "number:controllers:group"; of version 2 "0::group".
    std::ifstream groups(proc_self_cgroup);
    std::optional<std::uint64_t> smallest;
    std::string line;
    while (std::getline(groups, line)) {
        const std::size_t first = line.find(':');
        const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
        if (second == std::string::npos) {
            continue;
        }
        const std::string controllers = line.substr(first + 1, second - first - 1);
        const std::string group = line.substr(second + 1);
        std::optional<std::uint64_t> limit;
        if (controllers.empty()) {
            limit = smallest_limit(mount, group, "memory.max");
        } else if (("," + controllers + ",").find(",memory,") != std::string::npos) {
            limit = smallest_limit(mount + "/memory", group, "memory.limit_in_bytes");
        }
        if (limit) {
            smallest = std::min(smallest.value_or(*limit), *limit);
        }
    }
    return smallest;
}

} // namespace vmm
