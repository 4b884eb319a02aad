// The filters of system calls. They are compiled when this program is built.
#pragma once

#include <linux/filter.h>

#include <cstdint>
#include <span>
#include <string_view>

#include "vmm/sandbox/refusal.hpp"
#include "vmm/sandbox/thread_kind.hpp"

namespace vmm {

/// What a process must still do after its machine has been made.
struct ProcessNeeds {
    /// Whether guests may be migrated to or from other hosts, over TCP connections.
    bool network = false;
};

/// The rules of filters/ as programs for seccomp(2) with SECCOMP_SET_MODE_FILTER. libseccomp compiles them while this
/// program is built (filters/compile_filters.cpp). At run time this would cost most of a millisecond at each start.
/// Threads: any.
namespace compiled_filters {

/// Stands in the program of a process for the id of that process. No process has this id: Linux gives none above 2^22
/// (PID_MAX_LIMIT).
inline constexpr std::uint32_t kAnyProcess = 0x7ff1d000;

/// The filter of a thread of this kind.
[[nodiscard]] std::span<const sock_filter> of_thread(ThreadKind kind, Refusal refusal) noexcept;
/// The filter of all threads of a process that runs a machine. kAnyProcess stands in one of its instructions.
[[nodiscard]] std::span<const sock_filter> of_process(const ProcessNeeds& needs, Refusal refusal) noexcept;

/// The name of a system call; empty if libseccomp did not know it.
[[nodiscard]] std::string_view name_of_call(int number) noexcept;

} // namespace compiled_filters

} // namespace vmm
