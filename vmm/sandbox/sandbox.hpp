// Takes away from threads the rights that they never need, because a guest may take over the thread that serves it.
#pragma once

#include <string_view>

#include "kvm/host/unique_fd.hpp"
#include "vmm/config.hpp"
#include "vmm/sandbox/thread_kind.hpp"

namespace vmm {

/// Confines threads by the filters of their kinds (compiled_filters.hpp). If the mode is kOff, it does nothing.
///
/// Threads: confine() may be called on any.
class Sandbox {
  public:
    /// Throws Error if the host cannot confine threads.
    explicit Sandbox(SandboxMode mode);

    /// Confines the calling thread, and threads that it creates later, for good. The thread gains no rights by
    /// execve(2) (PR_SET_NO_NEW_PRIVS), has no capability (except a disk's CAP_IPC_LOCK), reaches no file by its name
    /// (Landlock, if the host has it), and makes only the system calls of its kind. Any other call is not made, and
    /// raises SIGSYS with the code SYS_SECCOMP; that ends the process, unless the program has a handler.
    ///
    /// With SandboxMode::kLog the calls are made and logged, and nothing else changes. `name` is for confined_thread().
    /// Throws Error.
    void confine(ThreadKind kind, std::string_view name) const;

  private:
    SandboxMode mode_;
    UniqueFd no_files_; ///< a Landlock ruleset; none: the host has no Landlock
};

/// The `name` with which the calling thread was confined; empty if it is not confined. It may be called in a signal
/// handler.
[[nodiscard]] std::string_view confined_thread() noexcept;

} // namespace vmm
