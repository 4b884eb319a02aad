// Programs that this process starts.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/host/unique_fd.hpp"

namespace vmm {

/// How a program is started. It gets these descriptors and no others, the default action of every signal, and a process
/// group of its own, so that it does not get the signals that a terminal sends to this process.
struct ProgramSpec {
    std::string program;                                   ///< looked for in PATH if it has no slash
    std::vector<std::string> arguments{};                  ///< the first is its name
    std::optional<std::vector<std::string>> environment{}; ///< "NAME=value"; nothing: that of this process
    int in = -1;                                           ///< its standard input, on loan; -1: /dev/null
    int out = -1;                                          ///< its standard output, on loan; -1: /dev/null
    int errors = -1;                                       ///< its standard error, on loan; -1: /dev/null
    int kept = -1;                                         ///< becomes its ChildProcess::kKeptFd; -1: nothing
    bool without_huge_pages = false;                       ///< PR_SET_THP_DISABLE
    std::optional<uid_t> user{};                           ///< who runs it, without other groups; nothing: this user
    std::optional<gid_t> group{};                          ///< goes with `user`
    bool ends_with_us = false;                             ///< the kernel kills it when the thread that started it ends
};

/// Thrown if the process was made, but the program cannot be run.
class ProgramError : public Error {
  public:
    using Error::Error;
};

/// A program that runs. It is identified by a pidfd, so that no signal goes to another process that has got its id. The
/// id may be reused if somebody else waits for the children of this process (a program that embeds the library, or one
/// that ignores SIGCHLD). On a kernel without pidfds (before Linux 5.3) it checks before each signal that the child is
/// still ours.
///
/// Threads: one at a time.
class ChildProcess {
  public:
    static constexpr int kKeptFd = 3;

    /// Throws Error, "cannot <tried>", if no process can be made. Throws ProgramError if the program cannot be run.
    ChildProcess(const ProgramSpec& spec, const std::string& tried, bool with_pidfd = true);
    /// Kills the program if it still runs, and waits for it.
    ~ChildProcess();
    ChildProcess(const ChildProcess&) = delete;
    ChildProcess& operator=(const ChildProcess&) = delete;

    [[nodiscard]] pid_t pid() const noexcept { return pid_; }

    /// Sends a signal. Returns false if the program has ended and somebody has waited for it.
    // NOLINTNEXTLINE(modernize-use-nodiscard): whoever only wants it to end need not know.
    bool signal(int number) const noexcept;
    /// Does the same for the program and everything that it has started.
    // NOLINTNEXTLINE(modernize-use-nodiscard): as above.
    bool signal_group(int number) const noexcept;
    /// Waits until the program has ended, then kills the processes that it has left running, and forgets it. Returns
    /// its status as waitpid() gives it; 0 if somebody else has got the status.
    int wait() noexcept;
    /// Leaves it running, and forgets it. Whoever waits for this process's children must then wait for it, too.
    void let_go() noexcept;

  private:
    [[nodiscard]] bool is_ours() const noexcept;

    pid_t pid_ = -1; ///< -1: somebody has waited for it
    UniqueFd pidfd_;
};

/// Makes the next exec close every descriptor from `first` on. It may be called between fork and exec. Tests set
/// `with_close_range` to false to try the way of kernels without it (before Linux 5.11).
void close_on_exec_from(int first, bool with_close_range = true) noexcept;

} // namespace vmm
