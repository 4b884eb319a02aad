#include "kvm/host/process_memory.hpp"

#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <string_view>

namespace vmm {

namespace {

/// One mapping as smaps describes it.
struct MappingFacts {
    std::uintptr_t start = 0;
    std::uintptr_t end = 0;
    std::uint64_t resident_bytes = 0;
    std::uint64_t huge_bytes = 0;

    [[nodiscard]] bool overlaps(std::span<const std::byte> piece) const {
        const auto piece_start = reinterpret_cast<std::uintptr_t>(piece.data());
        return start < piece_start + piece.size() && piece_start < end;
    }
};

/// Returns false if nothing could be read: a process has at least one mapping.
bool for_each_mapping(const std::string& proc, const std::function<void(const MappingFacts&)>& visit) {
    std::ifstream smaps(proc + "/smaps");
    MappingFacts facts;
    std::string line;
    while (std::getline(smaps, line)) {
        std::uint64_t first = 0;
        std::uint64_t second = 0;
        if (std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " ", &first, &second) == 2) {
            if (facts.end != 0) {
                visit(facts);
            }
            facts = {first, second};
        } else if (std::sscanf(line.c_str(), "Rss: %" SCNu64, &first) == 1) {
            facts.resident_bytes = first * 1024;
        } else if (std::sscanf(line.c_str(), "AnonHugePages: %" SCNu64, &first) == 1) {
            facts.huge_bytes = first * 1024;
        }
    }
    if (facts.end == 0) {
        return false;
    }
    visit(facts);
    return true;
}

} // namespace

std::optional<ResidentMemory> resident_memory_of(std::span<const std::byte> piece, const std::string& proc) {
    ResidentMemory result;
    bool any = false;
    bool all_huge = true;
    const bool known = for_each_mapping(proc, [&](const MappingFacts& facts) {
        if (facts.overlaps(piece)) {
            any = true;
            result.bytes += facts.resident_bytes;
            all_huge = all_huge && facts.huge_bytes == facts.end - facts.start;
        }
    });
    result.all_transparent_huge = any && all_huge;
    return known ? std::optional(result) : std::nullopt;
}

namespace {

/// The value of a member of status that is given in KiB, in bytes; nothing if there is no such member.
std::optional<std::uint64_t> status_bytes(const std::string& proc, std::string_view name) {
    std::ifstream status(proc + "/status");
    std::string word;
    std::uint64_t kib = 0;
    while (status >> word) {
        if (word == name) {
            return status >> kib ? std::optional(kib * 1024) : std::nullopt;
        }
        status.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
    }
    return std::nullopt;
}

} // namespace

std::optional<std::uint64_t> locked_bytes(const std::string& proc) {
    return status_bytes(proc, "VmLck:");
}

std::optional<std::uint64_t> pinned_bytes(const std::string& proc) {
    return status_bytes(proc, "VmPin:");
}

std::optional<std::uint64_t> resident_bytes_outside(std::span<const std::span<std::byte>> excluded,
                                                    const std::string& proc) {
    std::uint64_t total = 0;
    const bool known = for_each_mapping(proc, [&](const MappingFacts& facts) {
        const bool skip =
            std::ranges::any_of(excluded, [&](std::span<std::byte> piece) { return facts.overlaps(piece); });
        total += skip ? 0 : facts.resident_bytes;
    });
    return known ? std::optional(total) : std::nullopt;
}

std::optional<std::uint64_t> resident_bytes(const std::string& proc) {
    std::ifstream statm(proc + "/statm");
    std::uint64_t size_pages = 0;
    std::uint64_t resident_pages = 0;
    if (!(statm >> size_pages >> resident_pages)) {
        return std::nullopt;
    }
    return resident_pages * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

void release_program_pages() noexcept {
    ::dl_iterate_phdr(
        [](dl_phdr_info* program, std::size_t, void*) {
            const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
            for (const ElfW(Phdr) & segment : std::span(program->dlpi_phdr, program->dlpi_phnum)) {
                // The dynamic linker writes only to writable segments. Those must keep what was written.
                if (segment.p_type != PT_LOAD || (segment.p_flags & PF_W) != 0) {
                    continue;
                }
                const std::uintptr_t begin = (program->dlpi_addr + segment.p_vaddr) & ~(page - 1);
                const std::uintptr_t end = (program->dlpi_addr + segment.p_vaddr + segment.p_memsz) & ~(page - 1);
                if (end > begin) {
                    // A process that may not do this keeps the pages.
                    // NOLINTNEXTLINE(performance-no-int-to-ptr): the dynamic linker has its addresses as numbers.
                    ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
                }
            }
            return 1; // The program is the first, and libraries follow.
        },
        nullptr);
}

} // namespace vmm
