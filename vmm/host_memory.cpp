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

std::optional<std::uint64_t> read_memory_cgroup_limit(const CgroupRoots& roots) {
    std::optional<std::uint64_t> smallest;
    for (const CgroupLineage& lineage : cgroup_lineages("memory", roots)) {
        const char* const name = lineage.version == CgroupLineage::Version::k2 ? "memory.max" : "memory.limit_in_bytes";
        for (const std::filesystem::path& folder : lineage.folders) {
            if (const auto limit = read_cgroup_number(folder / name)) {
                smallest = std::min(smallest.value_or(*limit), *limit);
            }
        }
    }
    return smallest;
}

} // namespace vmm
