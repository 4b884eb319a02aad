#include "vmm/sandbox/jail.hpp"

#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/retry.hpp"
#include "vmm/sandbox/broker_message.hpp"

namespace vmm {

namespace {

constexpr const char* kNamespaces = "/run/netns/"; // as in ip-netns(8)

bool is_root() {
    return ::geteuid() == 0;
}

/// Throws Error.
void write_file(const std::string& path, std::string_view text, const std::string& tried, std::string_view advice) {
    const UniqueFd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    if (!file || uninterrupted([&] { return ::write(file.get(), text.data(), text.size()); }) < 0) {
        const int error_number = errno;
        throw_errno(error_number, tried, advice);
    }
}

void check_directory(const std::string& directory) {
    const std::string tried = "use " + directory + " as a jail (--jail)";
    struct stat facts {};
    if (::lstat(directory.c_str(), &facts) != 0) {
        const int error_number = errno;
        throw_errno(error_number, tried, {{ENOENT, "make an empty directory first"}});
    }
    if (!S_ISDIR(facts.st_mode)) {
        throw Error("cannot " + tried + ": it is no directory (make an empty one)");
    }
    std::error_code error;
    const bool is_empty = std::filesystem::is_empty(directory, error);
    if (error) {
        throw Error("cannot " + tried + ": " + error.message() + " (take a directory that this user may read)");
    }
    if (!is_empty) {
        throw Error("cannot " + tried + ": it is not empty (make an empty one)");
    }
}

void check_user(const JailSettings& settings) {
    if (is_root()) {
        if (!settings.user || !settings.group) {
            throw Error("cannot give up root in a jail: it is not said for whom (add --uid and --gid, of a user that "
                        "nothing else is run as)");
        }
        if (*settings.user == 0 || *settings.group == 0) {
            throw Error("cannot run as root in a jail: that would be none (take another --uid and --gid)");
        }
        return;
    }
    if (settings.user.value_or(::geteuid()) != ::geteuid() || settings.group.value_or(::getegid()) != ::getegid()) {
        throw Error("cannot run as user " + std::to_string(settings.user.value_or(::geteuid())) + " and group " +
                    std::to_string(settings.group.value_or(::getegid())) +
                    ": only root may (leave out --uid and --gid, or start vmm as root)");
    }
    if (!settings.net_namespace.empty()) {
        throw Error("cannot go into the network namespace " + settings.net_namespace +
                    " (--netns): only root may (leave it out, or start vmm as root)");
    }
}

void close_all_but(std::vector<int> kept) noexcept {
    std::ranges::sort(kept);
    int next = STDERR_FILENO + 1;
    const auto close_between = [](int first, int last) {
        if (first <= last && ::syscall(SYS_close_range, first, last, 0U) != 0) {
            rlimit limit{};
            ::getrlimit(RLIMIT_NOFILE, &limit);
            for (int fd = first; fd <= last && static_cast<rlim_t>(fd) < limit.rlim_cur; ++fd) {
                ::close(fd);
            }
        }
    };
    for (const int fd : kept) {
        if (fd >= next) {
            close_between(next, fd - 1);
            next = fd + 1;
        }
    }
    close_between(next, INT_MAX);
}

/// Makes a network namespace, which takes the kernel half a millisecond, and sends it on while the child goes on.
void send_network(int socket) noexcept {
    int error_number = 0;
    UniqueFd network;
    if (::unshare(CLONE_NEWNET) != 0) {
        error_number = errno;
    } else {
        network.reset(::open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
        error_number = network ? 0 : errno;
    }
    // If the child has ended, nobody needs it.
    static_cast<void>(broker_message::send(socket, {.value = error_number}, {}, {}, {network.get(), -1, -1, -1}));
}

/// The work of the parent. Other processes know the machine by the parent's id, so the parent passes their signals on.
[[noreturn]] void stand_for(pid_t child) noexcept {
    for (;;) {
        sigset_t all;
        sigfillset(&all);
        siginfo_t info{};
        const int signal = ::sigwaitinfo(&all, &info);
        int status = 0;
        if (signal == SIGCHLD) {
            pid_t ended = 0;
            bool is_over = false;
            while ((ended = ::waitpid(-1, &status, WNOHANG)) > 0) {
                if (ended == child) {
                    is_over = true;
                    break;
                }
            }
            if (!is_over) {
                continue;
            }
            const int own_status = status;
            while (::waitpid(-1, &status, 0) > 0) { // The broker ends when the child has.
            }
            if (WIFSIGNALED(own_status)) {
                const rlimit none{};
                ::setrlimit(RLIMIT_CORE, &none); // The child has written its own core file.
                const int number = WTERMSIG(own_status);
                ::signal(number, SIG_DFL);
                sigset_t one;
                sigemptyset(&one);
                sigaddset(&one, number);
                ::raise(number);
                ::sigprocmask(SIG_UNBLOCK, &one, nullptr);
            }
            ::_exit(WIFEXITED(own_status) ? WEXITSTATUS(own_status) : 1);
        } else if (signal > 0 && info.si_code != SI_KERNEL) { // a terminal sends its signals to the child, too
            ::kill(child, signal);
        }
    }
}

/// The ids are the same inside and outside, so files and sockets keep their owners.
void map_ids(uid_t user, gid_t group) {
    constexpr const char* kTried = "give a jail a user namespace (--jail)";
    constexpr const char* kAdvice = "start vmm as root, with --uid and --gid";
    write_file("/proc/self/setgroups", "deny", kTried, kAdvice);
    const auto same = [](auto id) { return std::to_string(id) + " " + std::to_string(id) + " 1"; };
    write_file("/proc/self/uid_map", same(user), kTried, kAdvice);
    write_file("/proc/self/gid_map", same(group), kTried, kAdvice);
}

void do_or_throw(int result, const char* tried, const char* advice = "") {
    if (result != 0) {
        const int error_number = errno;
        throw_errno(error_number, std::string(tried) + " (--jail)", advice);
    }
}

} // namespace

void check_jail(const JailSettings& settings) {
    check_directory(settings.directory);
    check_user(settings);
    if (!settings.cgroup.empty() && ::access((settings.cgroup + "/cgroup.procs").c_str(), W_OK) != 0) {
        const int error_number = errno;
        throw_errno(error_number, "join the control group " + settings.cgroup + " (--cgroup)",
                    {{ENOENT, "name its directory, below /sys/fs/cgroup"},
                     {ENOTDIR, "name its directory, below /sys/fs/cgroup"},
                     {EACCES, "have root give it to this user: chown its cgroup.procs"}});
    }
    if (!settings.net_namespace.empty()) {
        const bool is_name = settings.net_namespace.find('/') == std::string::npos;
        const std::string path = kNamespaces + settings.net_namespace;
        if (!is_name || ::access(path.c_str(), F_OK) != 0) {
            throw Error("cannot find the network namespace " + settings.net_namespace + " (--netns): there is no " +
                        path + " (make it: `ip netns add NAME`)");
        }
    }
}

int JailSettings::become_user() const noexcept {
    if (::geteuid() != 0 || !user || !group) {
        return 0;
    }
    const bool done = ::prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0 && ::syscall(SYS_setgroups, 0, nullptr) == 0 &&
                      ::syscall(SYS_setresgid, *group, *group, *group) == 0 &&
                      ::syscall(SYS_setresuid, *user, *user, *user) == 0;
    return done ? 0 : errno;
}

Jail::Jail(JailSettings settings, const std::vector<int>& kept) : settings_(std::move(settings)) {
    settings_.user = settings_.user.value_or(::geteuid());
    settings_.group = settings_.group.value_or(::getegid());
    std::error_code error;
    settings_.directory = std::filesystem::canonical(settings_.directory, error);
    if (error) {
        throw Error("cannot use a directory as a jail (--jail): " + error.message());
    }
    if (!settings_.cgroup.empty()) {
        write_file(settings_.cgroup + "/cgroup.procs", "0",
                   "join the control group " + settings_.cgroup + " (--cgroup)",
                   "its limits may be reached, or it has groups in it: take one without");
    }
    close_all_but(kept);
    UniqueFd sends_network;
    if (!settings_.net_namespace.empty()) {
        network_.reset(::open((kNamespaces + settings_.net_namespace).c_str(), O_RDONLY | O_CLOEXEC));
        if (!network_) {
            const int error_number = errno;
            throw_errno(error_number, "open the network namespace " + settings_.net_namespace + " (--netns)");
        }
    } else {
        std::array<int, 2> ends{-1, -1};
        do_or_throw(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()), "make a socket for a jail");
        network_.reset(ends[0]);
        sends_network.reset(ends[1]);
    }
    const int more = is_root() ? 0 : CLONE_NEWUSER;
    const uid_t user = ::geteuid();
    const gid_t group = ::getegid();
    if (::unshare(CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | more) != 0) {
        const int error_number = errno;
        throw_errno(error_number, "make namespaces for a jail (--jail)",
                    {{EPERM, "this host lets users have no namespaces: see sysctl user.max_user_namespaces and "
                             "kernel.unprivileged_userns_clone, or start vmm as root, with --uid and --gid"},
                     {ENOSPC, "there are too many: raise sysctl user.max_user_namespaces, or start vmm as root, with "
                              "--uid and --gid"},
                     {EUSERS, "there are too many: raise sysctl user.max_user_namespaces"}});
    }
    if (more != 0) {
        map_ids(user, group);
    }
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    ::sigprocmask(SIG_SETMASK, &all, &before);
    const pid_t child = ::fork();
    if (child > 0) {
        if (sends_network) {
            send_network(sends_network.get());
        }
        close_all_but({});
        stand_for(child);
    }
    const int error_number = errno;
    if (child == 0) { // It is the first process of its namespace: when it ends, all of them do.
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    }
    ::sigprocmask(SIG_SETMASK, &before, nullptr);
    if (child < 0) {
        throw_errno(error_number, "start a process in a jail (--jail)",
                    error_number == EAGAIN ? "the limit on processes is reached: `ulimit -u`, or the group's pids.max"
                                           : "");
    }
    do_or_throw(::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr), "keep the mounts of a jail to itself");
}

UniqueFd Jail::take_network() {
    if (!settings_.net_namespace.empty()) {
        return std::move(network_);
    }
    constexpr const char* kTried = "give a jail a network of its own (--jail)";
    auto message = broker_message::receive(network_.get());
    if (!message) {
        const int error_number = errno;
        throw_errno(error_number == 0 ? EPIPE : error_number, kTried);
    }
    network_.reset();
    if (message->head.value != 0) {
        throw_errno(message->head.value, kTried,
                    {{ENOSPC, "there are too many: raise sysctl user.max_net_namespaces"}});
    }
    return std::move(message->fds[0]);
}

void Jail::close(unsigned most_fds) {
    do_or_throw(::setns(take_network().get(), CLONE_NEWNET), "give a jail a network of its own");
    const char* const name = "guest";
    do_or_throw(::sethostname(name, std::string_view(name).size()), "name the host of a jail");
    const std::string& root = settings_.directory;
    constexpr unsigned long kNothing = MS_NOSUID | MS_NODEV | MS_NOEXEC;
    do_or_throw(::mount("jail", root.c_str(), "tmpfs", kNothing, "size=4k,nr_inodes=4,mode=0555"),
                "make the root of a jail");
    const std::string proc = root + "/proc";
    do_or_throw(::mkdir(proc.c_str(), 0555), "make the root of a jail"); // NOLINT(*-magic-numbers): a mode
    // In a container in which a part of /proc is covered, nobody may mount another /proc. Then the jail has none, and
    // reports lack the figures from it.
    if (::mount("proc", proc.c_str(), "proc", kNothing, nullptr) != 0 && errno != EPERM) {
        do_or_throw(-1, "mount /proc in a jail");
    }
    do_or_throw(::chdir(root.c_str()), "go into a jail");
    // The old root is on top of the new one for a moment, and is then removed (pivot_root(2)).
    do_or_throw(static_cast<int>(::syscall(SYS_pivot_root, ".", ".")), "make a directory the root of a jail");
    do_or_throw(::umount2(".", MNT_DETACH), "let go of the host's files");
    do_or_throw(::chdir("/"), "go into a jail");
    do_or_throw(::mount("jail", "/", nullptr, MS_REMOUNT | MS_RDONLY | kNothing, "size=4k,nr_inodes=4,mode=0555"),
                "make the root of a jail read-only");
    const std::array<std::pair<__rlimit_resource, rlim_t>, 3> limits{
        {{RLIMIT_CORE, 0}, {RLIMIT_MSGQUEUE, 0}, {RLIMIT_NOFILE, most_fds}}};
    for (const auto& [resource, most] : limits) {
        rlimit limit{};
        ::getrlimit(resource, &limit);
        limit = {std::min(limit.rlim_cur, most), std::min(limit.rlim_max, most)};
        do_or_throw(::setrlimit(resource, &limit), "limit what a jail has");
    }
    if (const int error = settings_.become_user(); error != 0) {
        throw_errno(error, "become the user of --uid and --gid (--jail)");
    }
    do_or_throw(::prctl(PR_SET_PDEATHSIG, SIGKILL), "end with who started the jail"); // a change of the user clears it
    ::clearenv();
}

} // namespace vmm
