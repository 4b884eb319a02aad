// Programs that this process starts.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/host/unique_fd.hpp"

namespace vmm {

/// What a program is started with. It gets these descriptors and no others, the default action of every signal, and a
/// process group of its own, so that a terminal's signals to us do not reach it.
struct ProgramSpec {
    std::string program;                                   ///< looked for by PATH where it has no slash
    std::vector<std::string> arguments{};                  ///< the first is its name
    std::optional<std::vector<std::string>> environment{}; ///< "NAME=value"; nothing: ours
    int in = -1;                                           ///< its standard input, on loan; -1: /dev/null
    int out = -1;                                          ///< its standard output, likewise
    int errors = -1;                                       ///< its standard error, likewise
    int kept = -1;                                         ///< what it finds as ChildProcess::kKeptFd; -1: nothing
    bool without_huge_pages = false;                       ///< PR_SET_THP_DISABLE
    std::optional<uid_t> user{};                           ///< who runs it, without other groups; nothing: who we are
    std::optional<gid_t> group{};                          ///< goes with `user`
    bool ends_with_us = false;                             ///< the kernel kills it when the thread that started it ends
};

/// The process is there, but the program cannot be run.
class ProgramError : public Error {
  public:
    using Error::Error;
};

/// A program that runs. It is known by a pidfd, so that no signal goes to another process that has its number by now,
/// even if somebody else waits for our children (a program that embeds us, or one that ignores SIGCHLD). On a kernel
/// without pidfds (before Linux 5.3) each signal is preceded by the question whether that child is still ours.
///
/// Threads: one at a time.
class ChildProcess {
  public:
    static constexpr int kKeptFd = 3;

    /// Throws Error, "cannot <tried>": no process can be made; ProgramError: the program cannot be run.
    ChildProcess(const ProgramSpec& spec, const std::string& tried, bool with_pidfd = true);
    /// Kills the program if it still runs, and waits for it.
    ~ChildProcess();
    ChildProcess(const ChildProcess&) = delete;
    ChildProcess& operator=(const ChildProcess&) = delete;

    [[nodiscard]] pid_t pid() const noexcept { return pid_; }

    /// False if it has ended, and somebody has waited for it.
    // NOLINTNEXTLINE(modernize-use-nodiscard): whoever only wants it to end need not know.
    bool signal(int number) const noexcept;
    /// The same for the program and everything that it has started.
    // NOLINTNEXTLINE(modernize-use-nodiscard): as above.
    bool signal_group(int number) const noexcept;
    /// Waits until it has ended, then signals what it has left running, and forgets it. Returns its status as waitpid()
    /// gives it; 0 if somebody else has it.
    int wait() noexcept;
    /// Leaves it running, and forgets it: it is then the business of whoever waits for this process's children.
    void let_go() noexcept;

  private:
    [[nodiscard]] bool is_ours() const noexcept;

    pid_t pid_ = -1; ///< -1: waited for
    UniqueFd pidfd_;
};

/// Has every descriptor from `first` on closed by the next exec. Safe between fork and exec. `with_close_range` is
/// false to try what is done on kernels without it (before Linux 5.11).
void close_on_exec_from(int first, bool with_close_range = true) noexcept;

} // namespace vmm
