// The resources of this process: descriptors, threads, mappings.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <sstream>
#include <string>
#include <system_error>
#include <vector>

#include "kvm/host/guest_address.hpp"

namespace vmm::testing {

[[nodiscard]] inline std::size_t count_entries(const std::filesystem::path& directory) {
    return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(directory), {}));
}
[[nodiscard]] inline std::size_t count_descriptors() {
    return count_entries("/proc/self/fd");
}
[[nodiscard]] inline std::size_t count_threads() {
    return count_entries("/proc/self/task");
}

/// The threads of another process. Threads that end meanwhile may be counted or not.
[[nodiscard]] inline std::size_t count_threads(const std::string& process) {
    std::error_code gone;
    std::size_t count = 0;
    for (std::filesystem::directory_iterator task("/proc/" + process + "/task", gone), end; !gone && task != end;
         task.increment(gone)) {
        ++count;
    }
    return count;
}

/// The address space in use, in bytes.
[[nodiscard]] inline std::uint64_t mapped_address_space() {
    std::ifstream statm("/proc/self/statm");
    std::uint64_t pages = 0;
    statm >> pages;
    return pages * 4096;
}

/// True if any mapping of this process overlaps `[address, address + size)`.
[[nodiscard]] inline bool is_mapped(const std::byte* address, std::size_t size) {
    const auto start = reinterpret_cast<std::uintptr_t>(address);
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
        unsigned long first = 0;
        unsigned long last = 0;
        if (std::sscanf(line.c_str(), "%lx-%lx ", &first, &last) == 2 && first < start + size && start < last) {
            return true;
        }
    }
    return false;
}

/// The two-letter flags of the mapping that contains `address` (proc_pid_smaps(5), VmFlags).
[[nodiscard]] inline std::vector<std::string> mapping_flags(const std::byte* address) {
    const auto wanted = reinterpret_cast<std::uintptr_t>(address);
    std::ifstream smaps("/proc/self/smaps");
    bool inside = false;
    for (std::string line; std::getline(smaps, line);) {
        unsigned long first = 0;
        unsigned long last = 0;
        if (std::sscanf(line.c_str(), "%lx-%lx ", &first, &last) == 2) {
            inside = first <= wanted && wanted < last;
        } else if (inside && line.starts_with("VmFlags:")) {
            std::istringstream words(line.substr(8));
            return {std::istream_iterator<std::string>(words), {}};
        }
    }
    return {};
}

[[nodiscard]] inline bool has_flag(const std::byte* address, const std::string& flag) {
    const auto flags = mapping_flags(address);
    return std::find(flags.begin(), flags.end(), flag) != flags.end();
}

/// How many 4 KiB pages of `bytes` exist (mincore). The start is page-aligned.
[[nodiscard]] inline std::size_t count_resident_pages(std::span<std::byte> bytes) {
    std::vector<unsigned char> pages((bytes.size() + 4095) / 4096);
    if (::mincore(bytes.data(), bytes.size(), pages.data()) != 0) {
        return 0;
    }
    return static_cast<std::size_t>(
        std::count_if(pages.begin(), pages.end(), [](unsigned char page) { return (page & 1) != 0; }));
}

} // namespace vmm::testing
