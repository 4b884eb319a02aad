// What threads that a guest can reach may do. Each call is made in a process of its own.

#include "vmm/sandbox/sandbox.hpp"

#include <gtest/gtest.h>

#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <semaphore>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "kvm/host/unique_fd.hpp"
#include "kvm/uapi.hpp"
#include "vmm/sandbox/landlock.hpp"

namespace vmm {
namespace {

constexpr std::array kKinds{ThreadKind::kVcpu,    ThreadKind::kBlock,   ThreadKind::kNet,    ThreadKind::kVsock,
                            ThreadKind::kConsole, ThreadKind::kEntropy, ThreadKind::kBalloon};
static_assert(kKinds.back() == kLastThreadKind);

/// Returns how a process ended. One of its threads was confined, and then did something.
struct Outcome {
    int signal = 0; ///< that ended it; 0: none
    int status = 0;
};

constexpr int kConfined = 0; ///< to the end
constexpr int kNotConfined = 9;

/// Confines a thread of another process, which then calls `act`. The process has called `before` before.
Outcome confined(
    SandboxMode mode, ThreadKind kind, const std::function<void()>& act, const std::function<void()>& before = [] {}) {
    const pid_t child = ::fork();
    if (child == 0) {
        const rlimit none{};
        ::setrlimit(RLIMIT_CORE, &none);
        int status = kNotConfined;
        try {
            before();
            const Sandbox sandbox(mode);
            std::thread([&] {
                sandbox.confine(kind, "confined");
                status = kConfined;
                act();
            }).join();
        } catch (const std::exception&) { // the status says so
        }
        ::_exit(status); // the first thread is not confined
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    return {WIFSIGNALED(status) ? WTERMSIG(status) : 0, WIFEXITED(status) ? WEXITSTATUS(status) : -1};
}

class SandboxTest : public ::testing::Test {
  protected:
    void SetUp() override {
#ifdef VMM_SANITIZED
        GTEST_SKIP() << "a sanitizer's runtime makes calls of its own in every thread";
#endif
    }
};

/// A call that no kind of thread may make, except those named.
struct Forbidden {
    const char* name;
    long (*call)();
    std::vector<ThreadKind> but_for{};
};

const std::vector<Forbidden>& forbidden() {
    static const std::vector<Forbidden> kCalls{
        {"open", [] { return ::syscall(SYS_open, "/etc/passwd", O_RDONLY); }},
        {"openat", [] { return ::syscall(SYS_openat, AT_FDCWD, "/etc/passwd", O_RDONLY); }},
        {"openat2", [] { return ::syscall(SYS_openat2, AT_FDCWD, "/", nullptr, 0); }},
        {"creat", [] { return ::syscall(SYS_creat, "/tmp/vmm-sandbox", 0600); }},
        {"open_by_handle_at", [] { return ::syscall(SYS_open_by_handle_at, AT_FDCWD, nullptr, O_RDONLY); }},
        {"memfd_create", [] { return ::syscall(SYS_memfd_create, "x", 0); }},
        {"execve", [] { return ::syscall(SYS_execve, "/bin/true", nullptr, nullptr); }},
        {"execveat", [] { return ::syscall(SYS_execveat, AT_FDCWD, "/bin/true", nullptr, nullptr, 0); }},
        {"fork", [] { return ::syscall(SYS_fork); }},
        {"vfork", [] { return ::syscall(SYS_clone, CLONE_VM | CLONE_VFORK | SIGCHLD, nullptr); }},
        {"clone of a process", [] { return ::syscall(SYS_clone, SIGCHLD, nullptr); }},
        {"clone with new namespaces", [] { return ::syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, nullptr); }},
        {"socket of IPv4", [] { return ::syscall(SYS_socket, AF_INET, SOCK_STREAM, 0); }},
        {"socket of netlink", [] { return ::syscall(SYS_socket, AF_NETLINK, SOCK_RAW, 0); }},
        {"socketpair", [] { return ::syscall(SYS_socketpair, AF_UNIX, SOCK_STREAM, 0, nullptr); }},
        {"connect", [] { return ::syscall(SYS_connect, 0, nullptr, 0); }, {ThreadKind::kVsock}},
        {"bind", [] { return ::syscall(SYS_bind, 0, nullptr, 0); }},
        {"listen", [] { return ::syscall(SYS_listen, 0, 1); }},
        {"ptrace", [] { return ::syscall(SYS_ptrace, PTRACE_ATTACH, ::getppid(), nullptr, nullptr); }},
        {"kill", [] { return ::syscall(SYS_kill, 1, 0); }},
        {"tgkill", [] { return ::syscall(SYS_tgkill, 1, 1, 0); }},
        {"pidfd_open", [] { return ::syscall(SYS_pidfd_open, 1, 0); }},
        {"pidfd_getfd", [] { return ::syscall(SYS_pidfd_getfd, 0, 0, 0); }},
        {"process_vm_readv", [] { return ::syscall(SYS_process_vm_readv, 1, nullptr, 0, nullptr, 0, 0); }},
        {"process_vm_writev", [] { return ::syscall(SYS_process_vm_writev, 1, nullptr, 0, nullptr, 0, 0); }},
        {"mmap of executable memory",
         [] { return ::syscall(SYS_mmap, nullptr, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); }},
        {"mprotect to executable", [] { return ::syscall(SYS_mprotect, nullptr, 4096, PROT_READ | PROT_EXEC); }},
        {"pkey_mprotect", [] { return ::syscall(SYS_pkey_mprotect, nullptr, 4096, PROT_EXEC, -1); }},
        {"mremap", [] { return ::syscall(SYS_mremap, nullptr, 4096, 8192, MREMAP_MAYMOVE); }},
        {"io_uring_setup", [] { return ::syscall(SYS_io_uring_setup, 1, nullptr); }},
        {"io_uring_register of files", [] { return ::syscall(SYS_io_uring_register, 0, 2, nullptr, 0); }},
        {"io_uring_enter", [] { return ::syscall(SYS_io_uring_enter, 0, 0, 0, 0, nullptr, 0); }, {ThreadKind::kBlock}},
        {"userfaultfd", [] { return ::syscall(SYS_userfaultfd, 0); }},
        {"bpf", [] { return ::syscall(SYS_bpf, 0, nullptr, 0); }},
        {"perf_event_open", [] { return ::syscall(SYS_perf_event_open, nullptr, 0, -1, -1, 0); }},
        {"ioctl that makes a VM", [] { return ::syscall(SYS_ioctl, 0, KVM_CREATE_VM, 0); }},
        {"ioctl that maps memory", [] { return ::syscall(SYS_ioctl, 0, KVM_SET_USER_MEMORY_REGION, nullptr); }},
        {"ioctl that types at a terminal", [] { return ::syscall(SYS_ioctl, 0, TIOCSTI, "x"); }},
        {"ioctl that runs a vCPU", [] { return ::syscall(SYS_ioctl, 0, KVM_RUN, 0); }, {ThreadKind::kVcpu}},
        {"mount", [] { return ::syscall(SYS_mount, "a", "b", "c", 0, nullptr); }},
        {"umount2", [] { return ::syscall(SYS_umount2, "/nowhere", 0); }},
        {"pivot_root", [] { return ::syscall(SYS_pivot_root, "/nowhere", "/nowhere"); }},
        {"chroot", [] { return ::syscall(SYS_chroot, "/nowhere"); }},
        {"unshare", [] { return ::syscall(SYS_unshare, CLONE_NEWNET); }},
        {"setns", [] { return ::syscall(SYS_setns, 0, 0); }},
        {"setuid", [] { return ::syscall(SYS_setuid, ::getuid()); }},
        {"capset", [] { return ::syscall(SYS_capset, nullptr, nullptr); }},
        {"prctl that allows dumps", [] { return ::syscall(SYS_prctl, PR_SET_DUMPABLE, 1, 0, 0, 0); }},
        {"seccomp", [] { return ::syscall(SYS_seccomp, 0, 0, nullptr); }},
        {"init_module", [] { return ::syscall(SYS_init_module, nullptr, 0, ""); }},
        {"kexec_load", [] { return ::syscall(SYS_kexec_load, 0, 0, nullptr, 0); }},
        {"reboot", [] { return ::syscall(SYS_reboot, 0, 0, 0, nullptr); }},
        {"keyctl", [] { return ::syscall(SYS_keyctl, 0, 0, 0, 0, 0); }},
        {"unlink", [] { return ::syscall(SYS_unlink, "/tmp/vmm-sandbox-nothing"); }},
        {"rename", [] { return ::syscall(SYS_rename, "/tmp/vmm-nothing", "/tmp/vmm-nothing-2"); }},
        {"chmod", [] { return ::syscall(SYS_chmod, "/tmp/vmm-sandbox-nothing", 0777); }},
        {"symlink", [] { return ::syscall(SYS_symlink, "/nowhere", "/nowhere/a"); }},
        {"getdents64", [] { return ::syscall(SYS_getdents64, 0, nullptr, 0); }},
        {"exit of the process", [] { return ::syscall(SYS_exit_group, 0); }},
        {"getrandom", [] { return ::syscall(SYS_getrandom, nullptr, 0, 0); }, {ThreadKind::kEntropy}},
    };
    return kCalls;
}

TEST_F(SandboxTest, WhatNoThreadNeedsIsNotDoneAndRaisesSigsys) {
    EXPECT_GE(forbidden().size(), 40U);
    for (const ThreadKind kind : kKinds) {
        for (const Forbidden& one : forbidden()) {
            const bool is_allowed = std::ranges::find(one.but_for, kind) != one.but_for.end();
            const Outcome outcome = confined(SandboxMode::kOn, kind, [&one] { one.call(); });
            EXPECT_EQ(outcome.signal, is_allowed ? 0 : SIGSYS) << one.name << ", kind " << static_cast<int>(kind);
        }
    }
}

TEST_F(SandboxTest, ProgramThatHandlesTheSignalGoesOnWithoutTheCall) {
    static std::atomic<int> number;
    static std::atomic<bool> has_name;
    number = 0;
    struct sigaction before {};
    struct sigaction action {};
    action.sa_sigaction = [](int /*signal*/, siginfo_t* info, void* /*context*/) {
        number = info->si_syscall;
        has_name = confined_thread() == "one with a long"; // fifteen bytes of it
    };
    action.sa_flags = SA_SIGINFO;
    ::sigaction(SIGSYS, &action, &before);
    const Sandbox sandbox(SandboxMode::kOn);
    std::thread([&sandbox] {
        sandbox.confine(ThreadKind::kConsole, "one with a long name");
        ::syscall(SYS_chdir, "/");
    }).join();
    ::sigaction(SIGSYS, &before, nullptr);
    EXPECT_EQ(number, SYS_chdir);
    EXPECT_TRUE(has_name);
    EXPECT_EQ(confined_thread(), "") << "this thread is not confined";
}

TEST_F(SandboxTest, EveryThreadHasMemoryLocksEventsAndAnEnd) {
    for (const ThreadKind kind : kKinds) {
        static std::mutex lock;
        static std::condition_variable changed;
        static bool is_done;
        is_done = false;
        const int event = ::eventfd(0, EFD_CLOEXEC);
        const Outcome outcome = confined(SandboxMode::kOn, kind, [event] {
            std::vector<std::unique_ptr<char[]>> blocks;
            for (std::size_t bytes = 16; bytes < (std::size_t{64} << 20U); bytes *= 2) {
                blocks.push_back(std::make_unique<char[]>(bytes));
                blocks.back()[bytes - 1] = 1;
            }
            blocks.clear();
            for (int i = 0; i < 64; ++i) { // the arena grows, and shrinks again
                blocks.push_back(std::make_unique<char[]>(100'000));
            }
            while (!blocks.empty()) {
                blocks.pop_back();
            }
            const std::uint64_t one = 1;
            if (::write(event, &one, sizeof one) != sizeof one) {
                ::raise(SIGKILL);
            }
            std::unique_lock hold(lock);
            changed.wait_for(hold, std::chrono::milliseconds(1), [] { return is_done; });
            is_done = std::chrono::steady_clock::now().time_since_epoch().count() != 0;
            std::this_thread::yield();
            try {
                throw std::runtime_error("an exception");
            } catch (const std::exception&) {
            }
        });
        EXPECT_EQ(outcome.signal, 0) << static_cast<int>(kind);
        EXPECT_EQ(outcome.status, kConfined) << static_cast<int>(kind);
        ::close(event);
    }
}

// Threads beyond the number of the allocator's arenas share the first arena, which is the heap. What broke: it was
// reported to have grown, and the thread wrote beyond its end.
TEST_F(SandboxTest, HeapOfTheProcessIsNotSaidToGrow) {
    for (const ThreadKind kind : kKinds) {
        const Outcome outcome = confined(SandboxMode::kOn, kind, [] {
            constexpr std::intptr_t kMore = 1 << 20;
            void* const failed = reinterpret_cast<void*>(-1);
            errno = 0;
            if (::sbrk(kMore) != failed || errno != ENOMEM || ::sbrk(kMore) != failed) {
                ::raise(SIGKILL);
            }
        });
        EXPECT_EQ(outcome.signal, 0) << static_cast<int>(kind);
        EXPECT_EQ(outcome.status, kConfined) << static_cast<int>(kind);
    }
}

// When a thread's arena shrinks for the first time, the allocator reads a file. The blocks are in several heaps of it.
TEST_F(SandboxTest, ThreadMayFreeAllThatItsArenaHas) {
    constexpr std::size_t kLargeBytes = 4 << 20;
    constexpr std::size_t kAllBytes = 200 << 20;
    constexpr std::size_t kBlockBytes = 100'000;
    const Outcome outcome = confined(
        SandboxMode::kOn, ThreadKind::kVsock,
        [] {
            std::vector<std::unique_ptr<volatile char[]>> blocks;
            for (std::size_t bytes = 0; bytes < kAllBytes; bytes += kBlockBytes) {
                blocks.push_back(std::make_unique<volatile char[]>(kBlockBytes));
            }
            while (!blocks.empty()) {
                blocks.pop_back();
            }
        },
        [] { std::make_unique<volatile char[]>(kLargeBytes)[0] = 1; });
    EXPECT_EQ(outcome.signal, 0);
    EXPECT_EQ(outcome.status, kConfined);
}

TEST_F(SandboxTest, ThreadOfADiskMayMakeThreads) {
    const Outcome outcome =
        confined(SandboxMode::kOn, ThreadKind::kBlock, [] { std::thread([] { std::vector<char>(1 << 20U); }).join(); });
    EXPECT_EQ(outcome.signal, 0);
    EXPECT_EQ(outcome.status, kConfined);
    const Outcome other = confined(SandboxMode::kOn, ThreadKind::kBlock,
                                   [] { std::thread([] { ::syscall(SYS_socket, AF_UNIX, SOCK_STREAM, 0); }).join(); });
    EXPECT_EQ(other.signal, SIGSYS) << "a thread has the filter of the one that made it";
}

TEST_F(SandboxTest, ThreadOfAVsockMayMakeUnixSocketsAlone) {
    const auto make = [](int family) {
        return confined(SandboxMode::kOn, ThreadKind::kVsock,
                        [family] { ::close(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0)); })
            .signal;
    };
    EXPECT_EQ(make(AF_UNIX), 0);
    EXPECT_EQ(make(AF_INET6), SIGSYS);
    EXPECT_EQ(make(AF_VSOCK), SIGSYS);
}

/// The line `name` of a thread's /proc/self/task/TID/status.
std::string status_of(pid_t thread, const std::string& name) {
    std::ifstream file("/proc/self/task/" + std::to_string(thread) + "/status");
    for (std::string line; std::getline(file, line);) {
        if (line.starts_with(name + ":\t")) {
            return line.substr(name.size() + 2);
        }
    }
    return "no such line";
}

TEST_F(SandboxTest, ThreadHasNoCapabilityAndGainsNone) {
    const std::string before = status_of(static_cast<pid_t>(::syscall(SYS_gettid)), "NoNewPrivs");
    std::atomic<pid_t> id = 0;
    std::binary_semaphore is_confined(0);
    std::binary_semaphore is_seen(0);
    const Sandbox sandbox(SandboxMode::kOn);
    std::thread thread([&] {
        id = static_cast<pid_t>(::syscall(SYS_gettid));
        sandbox.confine(ThreadKind::kVcpu, "vcpu0");
        is_confined.release();
        is_seen.acquire();
    });
    is_confined.acquire();
    for (const char* const set : {"CapInh", "CapPrm", "CapEff", "CapAmb"}) {
        EXPECT_EQ(status_of(id, set), "0000000000000000") << set;
    }
    EXPECT_EQ(status_of(id, "NoNewPrivs"), "1");
    EXPECT_EQ(status_of(id, "Seccomp"), "2") << "a filter";
    EXPECT_EQ(status_of(static_cast<pid_t>(::syscall(SYS_gettid)), "NoNewPrivs"), before) << "no other thread is";
    is_seen.release();
    thread.join();
}

TEST_F(SandboxTest, OffDoesNothing) {
    const Outcome outcome = confined(SandboxMode::kOff, ThreadKind::kVcpu, [] {
        ::close(::open("/dev/null", O_RDONLY | O_CLOEXEC));
        ::syscall(SYS_uname, nullptr);
    });
    EXPECT_EQ(outcome.signal, 0);
}

TEST_F(SandboxTest, LogRefusesNothing) {
    const Outcome outcome = confined(SandboxMode::kLog, ThreadKind::kVcpu, [] {
        if (const int fd = ::open("/dev/null", O_RDONLY | O_CLOEXEC); fd < 0) {
            ::raise(SIGKILL);
        }
    });
    EXPECT_EQ(outcome.signal, 0);
    EXPECT_EQ(outcome.status, kConfined);
}

TEST(LandlockTest, ThreadReachesNoFileByItsName) {
    if (landlock_version() == 0) {
        GTEST_SKIP() << "this kernel has no Landlock";
    }
    const int open_before = ::open("/dev/null", O_RDWR | O_CLOEXEC);
    int error_number = 0;
    ssize_t written = 0;
    std::thread([&] {
        ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        const UniqueFd ruleset = make_ruleset_without_rights();
        restrict_this_thread(ruleset.get());
        if (const int fd = ::open("/etc/passwd", O_RDONLY | O_CLOEXEC); fd < 0) {
            error_number = errno;
        }
        written = ::write(open_before, "x", 1);
    }).join();
    EXPECT_EQ(error_number, EACCES);
    EXPECT_EQ(written, 1) << "what is open stays open";
    EXPECT_TRUE(UniqueFd(::open("/etc/passwd", O_RDONLY | O_CLOEXEC))) << "no other thread is restricted";
    ::close(open_before);
}

} // namespace
} // namespace vmm
