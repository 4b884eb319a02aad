// The filters of system calls, as they were compiled when this program was built.
#pragma once

#include <linux/filter.h>

#include <cstdint>
#include <span>
#include <string_view>

#include "vmm/sandbox/refusal.hpp"
#include "vmm/sandbox/thread_kind.hpp"

namespace vmm {

/// What a process still has to do when its machine has been made.
struct ProcessNeeds {
    /// Whether guests may go to, or come from, other hosts: connections of TCP.
    bool network = false;
};

/// The rules of filters/ as programs for seccomp(2) with SECCOMP_SET_MODE_FILTER. libseccomp compiles them while this
/// program is built (filters/compile_filters.cpp), because that takes it most of a millisecond, which each start would
/// pay for. Threads: any.
namespace compiled_filters {

/// Stands in the program of a process where the number of that process belongs. No process has it: Linux gives none
/// above 2^22 (PID_MAX_LIMIT).
inline constexpr std::uint32_t kAnyProcess = 0x7ff1d000;

/// What a thread of this kind may do.
[[nodiscard]] std::span<const sock_filter> of_thread(ThreadKind kind, Refusal refusal) noexcept;
/// What any thread of a process may do that runs a machine. kAnyProcess stands in one instruction of it.
[[nodiscard]] std::span<const sock_filter> of_process(const ProcessNeeds& needs, Refusal refusal) noexcept;

/// The name of a system call; empty if libseccomp did not know it.
[[nodiscard]] std::string_view name_of_call(int number) noexcept;

} // namespace compiled_filters

} // namespace vmm
