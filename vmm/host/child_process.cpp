#include "vmm/host/child_process.hpp"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <optional>

#include "kvm/host/error.hpp"
#include "kvm/host/file_server.hpp"
#include "kvm/host/retry.hpp"
#include "vmm/host/process_limits.hpp"

namespace vmm {

namespace {

// This call is newer than some headers with which this may be built.
#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
constexpr unsigned kCloseRangeCloexec = 1U << 2;
constexpr idtype_t kByPidfd = static_cast<idtype_t>(3); // P_PIDFD
constexpr int kMostDescriptors = 1 << 20;               // fs.nr_open, unless raised

struct Pipe {
    UniqueFd reader;
    UniqueFd writer;

    explicit Pipe(const std::string& tried) {
        std::array<int, 2> ends{-1, -1};
        if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
            throw_errno(errno, tried);
        }
        reader.reset(ends[0]);
        writer.reset(ends[1]);
    }
};

std::vector<char*> pointers_to(std::vector<std::string>& words) {
    std::vector<char*> pointers;
    for (std::string& word : words) {
        pointers.push_back(word.data());
    }
    pointers.push_back(nullptr);
    return pointers;
}

// The following runs between fork and exec, where only a few functions are safe.

struct Start {
    const ProgramSpec& spec;
    char* const* arguments;
    char* const* environment;
    int go;     ///< the child begins when a byte comes here
    int failed; ///< the child writes an errno here
    pid_t parent;
    std::optional<rlimit> open_files; ///< the limit before this process raised it for itself
};

[[noreturn]] void fail(const Start& start) noexcept {
    const int error = errno;
    [[maybe_unused]] const ssize_t written = ::write(start.failed, &error, sizeof(error));
    ::_exit(127);
}

[[noreturn]] void become(const Start& start) noexcept {
    // The child waits until its parent has a pidfd. If the child ended earlier, another process might get its id.
    char byte = 0;
    while (::read(start.go, &byte, 1) < 0 && errno == EINTR) {
    }
    ::setpgid(0, 0);
    if (start.spec.ends_with_us) {
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (::getppid() != start.parent) {
            ::_exit(126); // The parent ended before the child could ask for the signal.
        }
    }
    if (start.spec.user &&
        (::setgroups(0, nullptr) != 0 || ::setresgid(*start.spec.group, *start.spec.group, *start.spec.group) != 0 ||
         ::setresuid(*start.spec.user, *start.spec.user, *start.spec.user) != 0)) {
        fail(start);
    }
    if (start.spec.without_huge_pages) {
        ::prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    }
    for (int number = 1; number < NSIG; ++number) {
        ::signal(number, SIG_DFL);
    }
    sigset_t none;
    ::sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);

    // The descriptors are first moved out of each other's way, and then to their places.
    constexpr int kAbove = ChildProcess::kKeptFd + 1;
    std::array<int, 4> from{start.spec.in, start.spec.out, start.spec.errors, start.spec.kept};
    for (std::size_t place = 0; place < from.size(); ++place) {
        int& fd = from[place];
        if (fd >= 0) {
            fd = ::fcntl(fd, F_DUPFD_CLOEXEC, kAbove);
        } else if (place != ChildProcess::kKeptFd) {
            const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
            fd = null < 0 ? null : ::fcntl(null, F_DUPFD_CLOEXEC, kAbove);
        } else {
            continue;
        }
        if (fd < 0) {
            fail(start);
        }
    }
    const int failed = ::fcntl(start.failed, F_DUPFD_CLOEXEC, kAbove);
    const Start moved{start.spec, start.arguments, start.environment, start.go, failed, start.parent, start.open_files};
    for (std::size_t place = 0; place < from.size(); ++place) {
        if (from[place] >= 0 && ::dup2(from[place], static_cast<int>(place)) < 0) {
            fail(moved);
        }
    }
    close_on_exec_from(start.spec.kept >= 0 ? kAbove : ChildProcess::kKeptFd);
    if (start.open_files) {
        ::setrlimit(RLIMIT_NOFILE, &*start.open_files);
    }
    if (start.spec.program.find('/') != std::string::npos) {
        ::execve(start.spec.program.c_str(), start.arguments, start.environment);
    } else {
        ::execvpe(start.spec.program.c_str(), start.arguments, start.environment);
    }
    fail(moved);
}

} // namespace

void close_on_exec_from(int first, bool with_close_range) noexcept {
    if (with_close_range && ::syscall(SYS_close_range, static_cast<unsigned>(first), ~0U, kCloseRangeCloexec) == 0) {
        return;
    }
    rlimit limit{};
    const bool known =
        ::getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_max < static_cast<rlim_t>(kMostDescriptors);
    const int end = known ? static_cast<int>(limit.rlim_max) : kMostDescriptors;
    for (int fd = first; fd < end; ++fd) {
        const int flags = ::fcntl(fd, F_GETFD);
        if (flags >= 0 && (flags & FD_CLOEXEC) == 0) {
            ::fcntl(fd, F_SETFD, flags | FD_CLOEXEC);
        }
    }
}

ChildProcess::ChildProcess(const ProgramSpec& spec, const std::string& tried, bool with_pidfd) {
    if (FileServer* const server = file_server()) { // this process may not start programs itself
        std::vector<std::string> all{spec.program};
        all.insert(all.end(), spec.arguments.begin(), spec.arguments.end());
        const std::array<int, 4> fds{spec.in, spec.out, spec.errors, spec.kept};
        FileServer::Started started = server->start({all, fds}, tried);
        pid_ = started.pid;
        pidfd_ = std::move(started.pidfd);
        return;
    }
    std::vector<std::string> arguments = spec.arguments;
    std::vector<std::string> environment = spec.environment.value_or(std::vector<std::string>{});
    const std::vector<char*> words = pointers_to(arguments);
    const std::vector<char*> variables = pointers_to(environment);
    const Pipe go(tried);
    Pipe failed(tried);
    const Start start{spec,
                      words.data(),
                      spec.environment ? variables.data() : environ,
                      go.reader.get(),
                      failed.writer.get(),
                      ::getpid(),
                      inherited_open_file_limit()};
    // No signal handler of this process may run in the child.
    sigset_t all;
    sigset_t before;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    pid_ = ::fork();
    if (pid_ == 0) {
        become(start);
    }
    const int error = errno;
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (pid_ < 0) {
        throw_errno(error, tried,
                    error == EAGAIN ? "the limit on processes is reached: `ulimit -u`, or the group's pids.max" : "");
    }
    ::setpgid(pid_, pid_); // Parent and child both do it, whichever comes first.
    if (with_pidfd) {
        pidfd_ = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
    }
    // It writes a byte and does not close the pipe, because another thread's child may hold a copy of the writing end
    // for a while.
    if (uninterrupted([&] { return ::write(go.writer.get(), "", 1); }) != 1) {
        const int refused = errno;
        signal(SIGKILL); // The child would wait for the byte for ever, and this process for the child.
        wait();
        throw_errno(refused, tried);
    }
    failed.writer.reset();
    int why = 0;
    const ssize_t count = uninterrupted([&] { return ::read(failed.reader.get(), &why, sizeof(why)); });
    if (count == static_cast<ssize_t>(sizeof(why))) {
        wait();
        const std::string_view advice = errno_advice(why);
        throw ProgramError("cannot " + tried + " (start " + spec.program + "): " + errno_reason(why) +
                           (advice.empty() ? "" : " (" + std::string(advice) + ")"));
    }
}

ChildProcess::~ChildProcess() {
    if (pid_ > 0) {
        signal(SIGKILL);
        wait();
    }
}

void ChildProcess::let_go() noexcept {
    pid_ = -1;
    pidfd_.reset();
}

/// Whether the id still belongs to the child: the child runs, or nobody has waited for it.
bool ChildProcess::is_ours() const noexcept {
    if (pid_ <= 0) {
        return false;
    }
    if (pidfd_) {
        return ::syscall(SYS_pidfd_send_signal, pidfd_.get(), 0, nullptr, 0) == 0;
    }
    siginfo_t info{};
    return ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOWAIT | WNOHANG) == 0;
}

bool ChildProcess::signal(int number) const noexcept {
    if (pid_ > 0 && pidfd_) {
        return ::syscall(SYS_pidfd_send_signal, pidfd_.get(), number, nullptr, 0) == 0;
    }
    return is_ours() && ::kill(pid_, number) == 0;
}

bool ChildProcess::signal_group(int number) const noexcept {
    // The group has the id of its leader. Nobody else gets that id while the leader can be waited for.
    return is_ours() && ::kill(-pid_, number) == 0;
}

int ChildProcess::wait() noexcept {
    if (pid_ <= 0) {
        return 0;
    }
    if (pidfd_) { // The pidfd is readable once the child has ended, whoever waits for it.
        pollfd ended{pidfd_.get(), POLLIN, 0};
        while (::poll(&ended, 1, -1) < 0 && errno == EINTR) {
        }
    } else {
        siginfo_t info{};
        while (::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOWAIT) != 0 && errno == EINTR) {
        }
    }
    signal_group(SIGKILL);
    siginfo_t info{};
    int result = uninterrupted([&] {
        return pidfd_ ? ::waitid(kByPidfd, static_cast<id_t>(pidfd_.get()), &info, WEXITED)
                      : ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED);
    });
    if (result != 0 && pidfd_ && errno == EINVAL) { // Linux 5.3 has pidfds, but cannot wait by them.
        result = ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED);
    }
    pid_ = -1;
    pidfd_.reset();
    if (result != 0) {
        return 0;
    }
    return info.si_code == CLD_EXITED ? (info.si_status & 0xff) << 8
                                      : info.si_status | (info.si_code == CLD_DUMPED ? 0x80 : 0);
}

} // namespace vmm
