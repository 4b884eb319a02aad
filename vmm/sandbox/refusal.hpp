// What happens with a system call that a filter does not allow.
#pragma once

namespace vmm {

enum class Refusal {
    kSignal, ///< it is not made, and the thread gets SIGSYS (SECCOMP_RET_TRAP, seccomp(2))
    kLog,    ///< it is made, and the kernel writes it to its audit log (SECCOMP_RET_LOG)
};

} // namespace vmm
