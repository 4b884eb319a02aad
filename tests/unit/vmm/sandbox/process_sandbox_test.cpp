// What a process may still do after it has given up the rights that it does not need.

#include "vmm/sandbox/process_sandbox.hpp"

#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <exception>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "kvm/host/thread_rights.hpp"
#include "support/host_temporary_directory.hpp"
#include "vmm/sandbox/landlock.hpp"

namespace vmm {
namespace {

/// How a process ended: the signal that ended it, or its exit status.
struct EndOfProcess {
    int signal = 0;
    int status = -1;
};

constexpr int kNotEvenConfined = 125;

/// Runs `act` in a confined process of its own, which exits with the result.
EndOfProcess in_confined_process(SandboxMode mode, const std::function<int()>& act, ProcessNeeds needs = {},
                                 const std::function<void()>& before = {}) {
    const pid_t process = ::fork();
    if (process == 0) {
        const rlimit none{};
        ::setrlimit(RLIMIT_CORE, &none);
        int status = kNotEvenConfined;
        try {
            ProcessSandbox sandbox(mode, {.needs = needs});
            if (before) {
                before();
            }
            sandbox.confine();
            status = act();
        } catch (const std::exception&) { // the status says so
        }
        ::_exit(status);
    }
    int status = 0;
    ::waitpid(process, &status, 0);
    return {WIFSIGNALED(status) ? WTERMSIG(status) : 0, WIFEXITED(status) ? WEXITSTATUS(status) : -1};
}

int errno_of(long result) {
    return result < 0 ? errno : 0;
}

class ProcessSandboxTest : public ::testing::Test {
  protected:
    void SetUp() override {
#ifdef VMM_SANITIZED
        GTEST_SKIP() << "a sanitizer's runtime makes calls of its own";
#endif
    }
};

struct RefusedCall {
    const char* name;
    long (*call)();
};

TEST_F(ProcessSandboxTest, WhatWouldTakeOverSomethingElseRaisesSigsys) {
    const std::vector<RefusedCall> calls{
        {"execve", [] { return ::syscall(SYS_execve, "/bin/true", nullptr, nullptr); }},
        {"execveat", [] { return ::syscall(SYS_execveat, AT_FDCWD, "/bin/true", nullptr, nullptr, 0); }},
        {"fork", [] { return ::syscall(SYS_fork); }},
        {"vfork", [] { return ::syscall(SYS_clone, CLONE_VM | CLONE_VFORK | SIGCHLD, nullptr); }},
        {"clone of a process", [] { return ::syscall(SYS_clone, SIGCHLD, nullptr); }},
        {"clone with a user namespace", [] { return ::syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, nullptr); }},
        {"ptrace", [] { return ::syscall(SYS_ptrace, PTRACE_ATTACH, ::getppid(), nullptr, nullptr); }},
        {"process_vm_writev", [] { return ::syscall(SYS_process_vm_writev, 1, nullptr, 0, nullptr, 0, 0); }},
        {"pidfd_getfd", [] { return ::syscall(SYS_pidfd_getfd, 0, 0, 0); }},
        {"mount", [] { return ::syscall(SYS_mount, "a", "b", "c", 0, nullptr); }},
        {"pivot_root", [] { return ::syscall(SYS_pivot_root, "/nowhere", "/nowhere"); }},
        {"chroot", [] { return ::syscall(SYS_chroot, "/nowhere"); }},
        {"unshare", [] { return ::syscall(SYS_unshare, CLONE_NEWUSER); }},
        {"setns", [] { return ::syscall(SYS_setns, 0, 0); }},
        {"bpf", [] { return ::syscall(SYS_bpf, 0, nullptr, 0); }},
        {"perf_event_open", [] { return ::syscall(SYS_perf_event_open, nullptr, 0, -1, -1, 0); }},
        {"init_module", [] { return ::syscall(SYS_init_module, nullptr, 0, ""); }},
        {"kexec_load", [] { return ::syscall(SYS_kexec_load, 0, 0, nullptr, 0); }},
        {"keyctl", [] { return ::syscall(SYS_keyctl, 0, 0, 0, 0, 0); }},
        {"setuid", [] { return ::syscall(SYS_setuid, ::getuid()); }},
        {"open_by_handle_at", [] { return ::syscall(SYS_open_by_handle_at, AT_FDCWD, nullptr, O_RDONLY); }},
        {"mknodat", [] { return ::syscall(SYS_mknodat, AT_FDCWD, "/tmp/vmm-node", 0600, 0); }},
        {"mmap of executable memory",
         [] { return ::syscall(SYS_mmap, nullptr, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); }},
        {"mprotect to executable", [] { return ::syscall(SYS_mprotect, nullptr, 4096, PROT_READ | PROT_EXEC); }},
        {"pkey_mprotect", [] { return ::syscall(SYS_pkey_mprotect, nullptr, 4096, PROT_EXEC, -1); }},
        {"personality", [] { return ::syscall(SYS_personality, 0); }},
    };
    for (const RefusedCall& one : calls) {
        EXPECT_EQ(in_confined_process(SandboxMode::kOn, [&one] { return errno_of(one.call()); }).signal, SIGSYS)
            << one.name;
    }
}

TEST_F(ProcessSandboxTest, WhatIsOnNoListFails) {
    const std::vector<RefusedCall> calls{
        {"socket of netlink", [] { return ::syscall(SYS_socket, AF_NETLINK, SOCK_RAW, 0); }},
        {"socket of packets", [] { return ::syscall(SYS_socket, AF_PACKET, SOCK_RAW, 0); }},
        {"socket of IPv4", [] { return ::syscall(SYS_socket, AF_INET, SOCK_STREAM, 0); }},
        {"bind", [] { return ::syscall(SYS_bind, 0, nullptr, 0); }},
        {"listen", [] { return ::syscall(SYS_listen, 0, 1); }},
        {"kill", [] { return ::syscall(SYS_kill, ::getppid(), 0); }},
        {"tgkill of another process", [] { return ::syscall(SYS_tgkill, ::getppid(), ::getppid(), 0); }},
        {"pidfd_open", [] { return ::syscall(SYS_pidfd_open, ::getppid(), 0); }},
        {"unlink", [] { return ::syscall(SYS_unlink, "/tmp/vmm-nothing"); }},
        {"rename", [] { return ::syscall(SYS_rename, "/tmp/vmm-nothing", "/tmp/vmm-nothing-2"); }},
        {"mkdir", [] { return ::syscall(SYS_mkdir, "/tmp/vmm-nothing/x", 0700); }},
        {"chmod", [] { return ::syscall(SYS_chmod, "/tmp/vmm-nothing", 0777); }},
        {"fchmod", [] { return ::syscall(SYS_fchmod, 0, 0777); }},
        {"truncate", [] { return ::syscall(SYS_truncate, "/tmp/vmm-nothing", 0); }},
        {"symlink", [] { return ::syscall(SYS_symlink, "/nowhere", "/nowhere/a"); }},
        {"setxattr", [] { return ::syscall(SYS_setxattr, "/tmp/vmm-nothing", "user.a", "", 0, 0); }},
        {"prctl that allows dumps", [] { return ::syscall(SYS_prctl, PR_SET_DUMPABLE, 1, 0, 0, 0); }},
        {"limits of another process",
         [] { return ::syscall(SYS_prlimit64, ::getppid(), RLIMIT_NOFILE, nullptr, nullptr); }},
    };
    for (const RefusedCall& one : calls) {
        const EndOfProcess end = in_confined_process(SandboxMode::kOn, [&one] { return errno_of(one.call()); });
        EXPECT_EQ(end.status, EPERM) << one.name << ", signal " << end.signal;
    }
}

TEST_F(ProcessSandboxTest, ConnectionsOfTcpAreForThoseWhoMigrate) {
    const auto make = [] { return errno_of(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)); };
    EXPECT_EQ(in_confined_process(SandboxMode::kOn, make, {.network = false}).status, EPERM);
    EXPECT_EQ(in_confined_process(SandboxMode::kOn, make, {.network = true}).status, 0);
}

TEST_F(ProcessSandboxTest, FilesOfTheUserAreOutOfReachAndThoseOfTheKernelAreRead) {
    if (landlock_version() == 0) {
        GTEST_SKIP() << "this kernel has no Landlock";
    }
    const testing::TemporaryDirectory directory;
    const std::string own = directory.write("own", "x");
    const auto open = [](const std::string& path, int flags) {
        return in_confined_process(SandboxMode::kOn,
                                   [&] {
                                       return errno_of(::open(path.c_str(), flags | O_CLOEXEC,
                                                              0600)); // NOLINT(cppcoreguidelines-pro-type-vararg)
                                   })
            .status;
    };
    for (const std::string& path :
         {std::string("/etc/passwd"), own, std::string("/dev/null"), std::string("/proc/1/environ")}) {
        EXPECT_EQ(open(path, O_RDONLY), EACCES) << path;
    }
    EXPECT_EQ(open(own, O_WRONLY), EACCES);
    EXPECT_EQ(open(directory / "new", O_WRONLY | O_CREAT), EACCES);
    for (const char* const path :
         {"/proc/self/status", "/proc/self/smaps", "/proc/meminfo", "/proc/vmstat", "/sys/devices/system/cpu/online"}) {
        EXPECT_EQ(open(path, O_RDONLY), 0) << path;
    }
    EXPECT_EQ(open("/proc/self/coredump_filter", O_WRONLY), EACCES);
}

TEST_F(ProcessSandboxTest, HasNoCapabilityButToLockMemoryAndIsNotDumpable) {
    const auto look = [] {
        __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
        __user_cap_data_struct sets[2]{};
        if (::syscall(SYS_capget, &header, sets) != 0) {
            return 1;
        }
        const auto all = sets[0].effective | sets[0].permitted | sets[0].inheritable;
        if ((all & ~CAP_TO_MASK(CAP_IPC_LOCK)) != 0 || (sets[1].effective | sets[1].permitted) != 0) {
            return 2;
        }
        return ::prctl(PR_GET_DUMPABLE) == 0 ? 0 : 3;
    };
    EXPECT_EQ(in_confined_process(SandboxMode::kOn, look).status, 0);
}

TEST_F(ProcessSandboxTest, StaysDumpableIfThatIsWanted) {
    const pid_t process = ::fork();
    if (process == 0) {
        int status = kNotEvenConfined;
        try {
            ProcessSandbox sandbox(SandboxMode::kOn, {.stays_dumpable = true});
            sandbox.confine();
            status = ::prctl(PR_GET_DUMPABLE);
        } catch (const std::exception&) { // the status says so
        }
        ::_exit(status);
    }
    int status = 0;
    ::waitpid(process, &status, 0);
    ASSERT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 1);
}

TEST_F(ProcessSandboxTest, ThreadsBeginWorkAndEnd) {
    const EndOfProcess end = in_confined_process(SandboxMode::kOn, [] {
        std::atomic<int> done = 0;
        std::vector<std::thread> threads;
        for (int i = 0; i < 4; ++i) {
            threads.emplace_back([&done] {
                begin_thread();
                const std::vector<char> memory(8UL << 20U);
                std::ifstream facts("/proc/self/status");
                done += facts.good() && memory.back() == 0 ? 1 : 0;
            });
        }
        for (std::thread& thread : threads) {
            thread.join();
        }
        return done == 4 ? 0 : 1;
    });
    EXPECT_EQ(end.signal, 0);
    EXPECT_EQ(end.status, 0);
}

/// The filter must confine it, and it must have given up its files by itself.
TEST_F(ProcessSandboxTest, ThreadThatWasThereBeforeIsConfined) {
    if (landlock_version() == 0) {
        GTEST_SKIP() << "this kernel has no Landlock";
    }
    static std::atomic<int> stage;
    stage = 0;
    const auto before = [] {
        std::thread([] {
            begin_thread();
            stage = 1;
            stage.notify_all();
            stage.wait(1);
            const int file = errno_of(::open("/etc/passwd", O_RDONLY | O_CLOEXEC));
            const int call = errno_of(::syscall(SYS_chmod, "/tmp/vmm-nothing", 0777));
            stage = file == EACCES && call == EPERM ? 3 : 4;
            stage.notify_all();
        }).detach();
        stage.wait(0);
    };
    const auto act = [] {
        stage = 2;
        stage.notify_all();
        stage.wait(2);
        return stage == 3 ? 0 : 1;
    };
    EXPECT_EQ(in_confined_process(SandboxMode::kOn, act, {}, before).status, 0);
}

TEST_F(ProcessSandboxTest, OffAndLogRefuseNothing) {
    for (const SandboxMode mode : {SandboxMode::kOff, SandboxMode::kLog}) {
        const EndOfProcess end =
            in_confined_process(mode, [] { return errno_of(::open("/etc/passwd", O_RDONLY | O_CLOEXEC)); });
        EXPECT_EQ(end.status, 0) << to_string(mode);
    }
}

} // namespace
} // namespace vmm
