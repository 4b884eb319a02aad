// Which system calls a kind of thread may make.
#pragma once

#include <linux/filter.h>

#include <vector>

#include "vmm/sandbox/thread_kind.hpp"

namespace vmm {

/// What becomes of a call that is not allowed.
enum class Refusal {
    kSignal, ///< it is not made, and the thread gets SIGSYS (SECCOMP_RET_TRAP, seccomp(2))
    kLog,    ///< it is made, and the kernel writes it to its audit log (SECCOMP_RET_LOG)
};

/// A program for seccomp(2) with SECCOMP_SET_MODE_FILTER. Throws Error.
[[nodiscard]] std::vector<sock_filter> make_thread_filter(ThreadKind kind, Refusal refusal);

} // namespace vmm
