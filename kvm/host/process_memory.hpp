// What the kernel says of this process's own memory (proc_pid_smaps(5)).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

namespace vmm {

/// What is resident of a piece of our address space.
struct ResidentMemory {
    std::uint64_t bytes = 0;           ///< resident, in whole mappings that have part in the piece; hugetlb not counted
    bool all_transparent_huge = false; ///< true if every page of those mappings is a transparent huge page
};

/// The folder in which the kernel says it. What follows returns nothing if it cannot be read: unknown is not zero.
inline constexpr const char* kOwnProc = "/proc/self";

/// Reads smaps for the mappings that have part in `piece`.
[[nodiscard]] std::optional<ResidentMemory> resident_memory_of(std::span<const std::byte> piece,
                                                               const std::string& proc = kOwnProc);

/// What this process has locked (VmLck) and what is pinned in it for the long term (VmPin), in bytes
/// (proc_pid_status(5)).
[[nodiscard]] std::optional<std::uint64_t> locked_bytes(const std::string& proc = kOwnProc);
[[nodiscard]] std::optional<std::uint64_t> pinned_bytes(const std::string& proc = kOwnProc);

/// Everything resident in this process but the mappings that have part in one of `excluded`, in bytes. The kernel walks
/// every page that is resident: some 20 ms for each GiB of 4 KiB pages.
[[nodiscard]] std::optional<std::uint64_t> resident_bytes_outside(std::span<const std::span<std::byte>> excluded,
                                                                  const std::string& proc = kOwnProc);

/// All that is resident in this process, in bytes, hugetlb not counted (proc_pid_statm(5)). Quick, and exact to some
/// 100 KiB.
[[nodiscard]] std::optional<std::uint64_t> resident_bytes(const std::string& proc = kOwnProc);

/// Lets go of the pages of the program's file that this process has mapped and never writes to. What is used again
/// comes back from the page cache, some pages at a time. So code that has run once, as that for options does, counts no
/// more for the process. It takes some microseconds, and faults of a microsecond or so afterwards.
void release_program_pages() noexcept;

} // namespace vmm
