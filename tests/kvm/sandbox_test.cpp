// These tests show what `vmm run` does when a thread that its guest can reach makes a system call that it never needs.
// A debugger changes the thread's next system call into another one, as an attacker in the thread would.

#include <gtest/gtest.h>

#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <system_error>

#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/host_waiting.hpp"
#include "support/kvm_command.hpp"
#include "support/kvm_machine.hpp"
#include "support/kvm_require.hpp"
#include "vmm/limits.hpp"

namespace vmm {
namespace {

using testing::CommandBeside;
using testing::eventually;
using testing::mentions;
using testing::TemporaryDirectory;

/// The thread of that name in `process`; 0 if there is none.
pid_t thread_of(pid_t process, const std::string& name) {
    std::error_code gone;
    for (std::filesystem::directory_iterator task("/proc/" + std::to_string(process) + "/task", gone), end;
         !gone && task != end; task.increment(gone)) {
        std::ifstream comm(task->path() / "comm");
        if (std::string line; std::getline(comm, line) && line == name) {
            return static_cast<pid_t>(std::stoi(task->path().filename()));
        }
    }
    return 0;
}

/// Changes the next system call that `thread` makes into `call`. False if the thread cannot be debugged.
bool change_next_call(pid_t thread, long call) {
    if (::ptrace(PTRACE_SEIZE, thread, nullptr, PTRACE_O_TRACESYSGOOD) != 0) {
        return false;
    }
    ::ptrace(PTRACE_INTERRUPT, thread, nullptr, nullptr);
    for (;;) {
        int status = 0;
        if (::waitpid(thread, &status, __WALL) != thread || !WIFSTOPPED(status)) {
            return false;
        }
        __ptrace_syscall_info info{};
        ::ptrace(PTRACE_GET_SYSCALL_INFO, thread, sizeof info, &info);
        if (info.op == PTRACE_SYSCALL_INFO_ENTRY) {
            user_regs_struct registers{};
            ::ptrace(PTRACE_GETREGS, thread, nullptr, &registers);
            registers.orig_rax = static_cast<unsigned long long>(call);
            ::ptrace(PTRACE_SETREGS, thread, nullptr, &registers);
            return ::ptrace(PTRACE_DETACH, thread, nullptr, nullptr) == 0;
        }
        ::ptrace(PTRACE_SYSCALL, thread, nullptr, nullptr);
    }
}

class SandboxOfCommand : public testing::KvmTest {
  protected:
    void SetUp() override {
        KvmTest::SetUp();
#ifdef VMM_SANITIZED
        GTEST_SKIP() << "a sanitizer's runtime makes calls of its own in every thread";
#endif
    }
    [[nodiscard]] std::vector<std::string> words(const std::vector<std::string>& more = {}) const {
        std::vector<std::string> all{"run",    "--memory", "16M",        "--cmdline", "passes=1000000",
                                     "--disk", disk_,      "--vsock",    vsock_,      "--balloon",
                                     "0",      "--report", report_path_, "--serial",  "none"};
        all.insert(all.end(), more.begin(), more.end());
        return all;
    }
    [[nodiscard]] nlohmann::json report() const {
        std::ifstream file(report_path_);
        return nlohmann::json::parse(file, nullptr, false);
    }

    /// Filters that this test itself runs under; each thread inherits them.
    const unsigned of_all_ = testing::filters_of(::getpid(), ::getpid());
    TemporaryDirectory directory_;
    std::string disk_ = directory_.write("disk", std::string(1 << 20U, 0));
    std::string vsock_ = directory_ / "vsock";
    std::string report_path_ = directory_ / "report";
};

TEST_F(SandboxOfCommand, CallThatAThreadNeverNeedsEndsTheRunAndIsNamed) {
    for (const std::string name : {"vcpu0", "blk0", "vsock0", "balloon0"}) {
        CommandBeside command(words());
        ASSERT_TRUE(eventually([&] { return command.has_thread("vcpu0") && command.has_thread(name); })) << name;
        // Before the thread is confined the call would be made.
        const pid_t thread = thread_of(command.process(), name);
        ASSERT_TRUE(eventually([&] { return testing::filters_of(command.process(), thread) > of_all_ + 1; })) << name;
        if (!change_next_call(thread, SYS_execve)) {
            GTEST_SKIP() << "no process may be debugged here";
        }
        EXPECT_EQ(command.wait(), exit_codes::kGuestFailed) << command.errors();
        EXPECT_TRUE(mentions(command.errors(), "the sandbox ended the run: the thread " + name)) << command.errors();
        EXPECT_TRUE(mentions(command.errors(), "execve")) << command.errors();
        EXPECT_EQ(report()["guest"]["exit"], "sandbox") << name;
        EXPECT_FALSE(std::filesystem::exists(vsock_)) << "nothing is left behind";
    }
}

TEST_F(SandboxOfCommand, EveryThreadThatAGuestReachesIsConfinedUnlessItIsOff) {
    // One filter belongs to the whole process, and one to the thread.
    for (const auto& [mode, filters] : {std::pair("on", 2U), {"log", 2U}, {"off", 0U}}) {
        CommandBeside command(words({"--sandbox", mode}));
        for (const std::string name : {"vcpu0", "blk0", "vsock0", "balloon0"}) {
            ASSERT_TRUE(eventually([&] { return command.has_thread(name); })) << name;
            EXPECT_TRUE(eventually([&, more = filters] {
                return testing::filters_of(command.process(), thread_of(command.process(), name)) == of_all_ + more;
            })) << name
                << " with --sandbox " << mode;
        }
        command.send(SIGTERM);
        EXPECT_EQ(command.wait(), exit_codes::kStoppedBySignal) << command.errors();
    }
}

/// The number after `name` in a thread's status.
std::string status_of(pid_t process, pid_t thread, const std::string& name) {
    std::ifstream file("/proc/" + std::to_string(process) + "/task/" + std::to_string(thread) + "/status");
    for (std::string line; std::getline(file, line);) {
        if (line.starts_with(name + ":\t")) {
            return line.substr(name.size() + 2);
        }
    }
    return "nothing";
}

TEST_F(SandboxOfCommand, NoThreadOfTheProcessIsLeftOut) {
    const std::string log = directory_ / "log";
    const std::string api = directory_ / "api";
    CommandBeside command(words({"--log-file", log, "--api", api}));
    ASSERT_TRUE(eventually([&] { return command.has_thread("vcpu0"); }));
    const pid_t vcpu = thread_of(command.process(), "vcpu0");
    ASSERT_TRUE(eventually([&] { return testing::filters_of(command.process(), vcpu) == of_all_ + 2; }));
    constexpr std::uint64_t kToLockMemory = 1U << 14U; // CAP_IPC_LOCK
    unsigned threads = 0;
    for (const auto& task :
         std::filesystem::directory_iterator("/proc/" + std::to_string(command.process()) + "/task")) {
        const auto thread = static_cast<pid_t>(std::stoi(task.path().filename()));
        const std::string name = status_of(command.process(), thread, "Name");
        if (name.starts_with("kvm-") || name == "nothing") { // Linux runs some threads of KVM in our process.
            continue;
        }
        ++threads;
        EXPECT_GT(testing::filters_of(command.process(), thread), of_all_) << name;
        EXPECT_EQ(status_of(command.process(), thread, "NoNewPrivs"), "1") << name;
        for (const char* const set : {"CapInh", "CapPrm", "CapEff", "CapAmb"}) {
            EXPECT_EQ(std::stoull("0" + status_of(command.process(), thread, set), nullptr, 16) & ~kToLockMemory, 0U)
                << name << " " << set;
        }
    }
    EXPECT_GE(threads, 6U);
    command.send(SIGTERM);
    EXPECT_EQ(command.wait(), exit_codes::kStoppedBySignal) << command.errors();
    EXPECT_EQ(report()["guest"]["exit"], "signal");
    EXPECT_FALSE(std::filesystem::exists(api)) << "its broker removes it";
    EXPECT_FALSE(std::filesystem::exists(vsock_));
}

TEST_F(SandboxOfCommand, CallThatAThreadOfTheHostsSideNeverNeedsIsNamed) {
    CommandBeside command(words({"--api", directory_ / "api"}));
    ASSERT_TRUE(eventually([&] { return command.has_thread("vcpu0") && command.has_thread("control"); }));
    const pid_t thread = thread_of(command.process(), "control");
    ASSERT_TRUE(eventually([&] { return testing::filters_of(command.process(), thread) > of_all_; }));
    if (!change_next_call(thread, SYS_execve)) {
        GTEST_SKIP() << "no process may be debugged here";
    }
    EXPECT_EQ(command.wait(), exit_codes::kGuestFailed) << command.errors();
    EXPECT_TRUE(mentions(command.errors(), "the thread control tried the system call execve")) << command.errors();
}

} // namespace
} // namespace vmm
