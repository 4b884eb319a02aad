#include "vmm/host_memory.hpp"

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

} // namespace vmm
