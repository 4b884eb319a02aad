// Takes away from threads what they never need, because the guest that they serve may take them over.
#pragma once

#include <string_view>

#include "kvm/host/unique_fd.hpp"
#include "vmm/config.hpp"
#include "vmm/sandbox/thread_kind.hpp"

namespace vmm {

/// It confines threads by the filters of their kinds (compiled_filters.hpp). If the mode is kOff, it does nothing.
///
/// Threads: confine() any.
class Sandbox {
  public:
    /// Throws Error: the host cannot confine threads.
    explicit Sandbox(SandboxMode mode);

    /// Confines the calling thread, and those that it makes from now on, for good: it gains no rights by execve(2)
    /// (PR_SET_NO_NEW_PRIVS), has no capability (but a disk's CAP_IPC_LOCK), reaches no file by its name (Landlock, if
    /// the host has it), and makes the system calls of its kind alone. Any other one is not made, and raises SIGSYS,
    /// with SYS_SECCOMP as its code: that ends the process, unless the program has a handler. With SandboxMode::kLog
    /// the calls are made and logged, and nothing else changes. `name` is for confined_thread(). Throws Error.
    void confine(ThreadKind kind, std::string_view name) const;

  private:
    SandboxMode mode_;
    UniqueFd no_files_; ///< a Landlock ruleset; none: the host has no Landlock
};

/// The name that the calling thread was confined by; empty if it is not confined. It may be called in a signal handler.
[[nodiscard]] std::string_view confined_thread() noexcept;

} // namespace vmm
