// What the kernel reports about this process's own memory (proc_pid_smaps(5)).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

namespace vmm {

/// What is resident in a piece of our address space.
struct ResidentMemory {
    std::uint64_t bytes = 0;           ///< resident, in whole mappings that have part in the piece; hugetlb not counted
    bool all_transparent_huge = false; ///< true if every page of those mappings is a transparent huge page
};

/// The folder of the kernel's files about this process. The functions below return nothing if they cannot read them:
/// unknown is not zero.
inline constexpr const char* kOwnProc = "/proc/self";

/// Reads smaps for the mappings that overlap `piece`.
[[nodiscard]] std::optional<ResidentMemory> resident_memory_of(std::span<const std::byte> piece,
                                                               const std::string& proc = kOwnProc);

/// The bytes that this process has locked (VmLck), and the bytes pinned in it for the long term (VmPin)
/// (proc_pid_status(5)).
[[nodiscard]] std::optional<std::uint64_t> locked_bytes(const std::string& proc = kOwnProc);
[[nodiscard]] std::optional<std::uint64_t> pinned_bytes(const std::string& proc = kOwnProc);

/// The bytes resident in this process outside the mappings that overlap one of `excluded`. The kernel walks every
/// resident page, which takes some 20 ms for each GiB of 4 KiB pages.
[[nodiscard]] std::optional<std::uint64_t> resident_bytes_outside(std::span<const std::span<std::byte>> excluded,
                                                                  const std::string& proc = kOwnProc);

/// The bytes resident in this process, without hugetlb (proc_pid_statm(5)). It is quick, and exact to some 100 KiB.
[[nodiscard]] std::optional<std::uint64_t> resident_bytes(const std::string& proc = kOwnProc);

/// Releases the pages of the program's file that this process has mapped and never writes to. So code that has run
/// once, e.g. the parser of options, no longer counts for the process; pages that are used again come back from the
/// page cache, some at a time. The call takes some microseconds, and each later fault about one.
void release_program_pages() noexcept;

} // namespace vmm
