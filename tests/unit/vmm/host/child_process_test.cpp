// Programs that we start: what they get from us, and which processes a signal for them reaches.

#include "vmm/host/child_process.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "kvm/host/error.hpp"
#include "support/host_child_process.hpp"
#include "support/host_errors.hpp"
#include "support/host_pipe.hpp"
#include "support/host_refused_call.hpp"
#include "support/host_temporary_directory.hpp"
#include "vmm/bench/child.hpp"
#include "vmm/network/user_network.hpp"

namespace vmm {
namespace {

using testing::mentions;
using testing::Pipe;

ProgramSpec shell(const std::string& script, int out = -1) {
    return {.program = "/bin/sh", .arguments = {"sh", "-c", script}, .out = out};
}

/// All its output until its end.
std::string output_of(ProgramSpec spec) {
    Pipe pipe;
    spec.out = pipe.writer.get();
    ChildProcess child(spec, "try it");
    pipe.writer.reset();
    EXPECT_EQ(child.wait(), 0);
    return testing::read_available(pipe.reader.get());
}

// No pattern is used, because the shell would see the folder that it searches.
constexpr const char* kListDescriptors =
    "n=0; while [ $n -lt 300 ]; do if [ -e /proc/$$/fd/$n ]; then echo $n; fi; n=$((n + 1)); done";

class ChildProcessTest : public ::testing::TestWithParam<bool> {};

TEST(ChildProcess, HasNoDescriptorsButItsOwn) {
    const UniqueFd left_open(::dup(STDOUT_FILENO)); // like one that a shell has left open for us
    const UniqueFd high(::fcntl(STDOUT_FILENO, F_DUPFD, 200));
    EXPECT_EQ(output_of(shell(kListDescriptors)), "0\n1\n2\n");
    ProgramSpec spec = shell(kListDescriptors);
    spec.kept = left_open.get();
    EXPECT_EQ(output_of(spec), "0\n1\n2\n3\n");
}

TEST(ChildProcess, FindsItsDescriptorsWhateverNumbersTheyHaveHere) {
    // If a process has closed its standard descriptors, new descriptors get their numbers.
    const testing::TemporaryDirectory directory;
    const std::string result = testing::in_child_process([&] {
        for (int fd = 0; fd < 3; ++fd) {
            ::close(fd);
        }
        const UniqueFd out(::open((directory / "out").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600)); // 0
        const UniqueFd errors(::open((directory / "errors").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
        const UniqueFd in(::open((directory.write("in", "question")).c_str(), O_RDONLY | O_CLOEXEC));
        ProgramSpec spec = shell("echo out; echo errors >&2; cat; echo kept >&3");
        spec.in = in.get();
        spec.out = out.get();
        spec.errors = errors.get();
        spec.kept = out.get();
        ChildProcess child(spec, "try it");
        return std::to_string(child.wait());
    });
    EXPECT_EQ(result, "0");
    EXPECT_EQ(testing::content_of(directory / "out"), "out\nquestionkept\n");
    EXPECT_EQ(testing::content_of(directory / "errors"), "errors\n");
}

TEST(ChildProcess, HasTheEnvironmentThatItIsGiven) {
    ::setenv("VMM_TEST_SECRET", "token", 1);
    ProgramSpec spec{.program = "/usr/bin/env", .arguments = {"env"}};
    EXPECT_TRUE(mentions(output_of(spec), "VMM_TEST_SECRET=token"));
    spec.environment = {"ONE=1", "TWO=2"};
    EXPECT_EQ(output_of(spec), "ONE=1\nTWO=2\n");
    spec.environment = std::vector<std::string>{};
    EXPECT_EQ(output_of(spec), "");
    ::unsetenv("VMM_TEST_SECRET");
}

TEST(ChildProcess, HasSignalsAsTheyAreByDefault) {
    const auto before = ::signal(SIGTERM, SIG_IGN);
    ChildProcess child(shell("kill -TERM $$; exit 3"), "try it");
    EXPECT_EQ(child.wait(), SIGTERM);
    ::signal(SIGTERM, before);
}

TEST(ChildProcess, ThatIsNoProgramIsSaid) {
    const std::string error =
        testing::error_of([] { const ChildProcess child({.program = "/nowhere/x", .arguments = {"x"}}, "try it"); });
    EXPECT_TRUE(mentions(error, "cannot try it (start /nowhere/x): No such file")) << error;
    EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1) << "and is waited for";
}

TEST(ChildProcess, DescriptorsAreClosedWithoutCloseRangeToo) {
    const std::string result = testing::in_child_process([] {
        const int low = ::dup(STDOUT_FILENO);
        const int high = ::fcntl(STDOUT_FILENO, F_DUPFD, 500);
        close_on_exec_from(low + 1, false);
        const bool good = ::fcntl(low, F_GETFD) == 0 && ::fcntl(high, F_GETFD) == FD_CLOEXEC;
        return std::string(good ? "good" : "bad");
    });
    EXPECT_EQ(result, "good");
}

TEST_P(ChildProcessTest, EndsWithItsOwner) {
    Pipe pipe;
    {
        const ChildProcess child(shell("sleep 1000 & wait", pipe.writer.get()), "try it", GetParam());
        EXPECT_TRUE(child.signal(0));
        pipe.writer.reset();
    }
    char byte = 0; // the process that it started had the other end, too
    EXPECT_EQ(::read(pipe.reader.get(), &byte, 1), 0);
    EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1);
}

TEST_P(ChildProcessTest, TellsHowItEnded) {
    EXPECT_EQ(ChildProcess(shell("exit 7"), "try it", GetParam()).wait(), 7 << 8);
    EXPECT_EQ(ChildProcess(shell("kill -KILL $$"), "try it", GetParam()).wait(), SIGKILL);
}

// By then its number may belong to another process.
TEST_P(ChildProcessTest, NobodyIsSignalledOnceAnotherHasWaitedForIt) {
    ChildProcess child(shell("exit 0"), "try it", GetParam());
    ASSERT_EQ(::waitpid(child.pid(), nullptr, 0), child.pid()); // as an embedding program does
    EXPECT_FALSE(child.signal(0));
    EXPECT_FALSE(child.signal_group(0));
    EXPECT_EQ(child.wait(), 0);
}

TEST_P(ChildProcessTest, IsWaitedForWhereChildrenAreNot) {
    const std::string result = testing::in_child_process([] {
        ::signal(SIGCHLD, SIG_IGN);
        Pipe pipe;
        {
            const ChildProcess child(shell("sleep 1000 & wait", pipe.writer.get()), "try it", GetParam());
            pipe.writer.reset();
            child.signal_group(SIGKILL);
        }
        char byte = 0;
        return std::to_string(::read(pipe.reader.get(), &byte, 1));
    });
    EXPECT_EQ(result, "0");
}

INSTANTIATE_TEST_SUITE_P(WithAndWithoutPidfd, ChildProcessTest, ::testing::Bool());

// ---- Where they are started

TEST(BenchChild, HasNoDescriptorsOfOurs) {
    const UniqueFd left_open(::fcntl(STDOUT_FILENO, F_DUPFD, 100));
    bench::ChildSpec spec;
    spec.words = {"/bin/sh", "-c", kListDescriptors};
    EXPECT_EQ(bench::run_child(spec).output, "0\n1\n2\n");
}

TEST(UserNetwork, StartsAProgramWithItsConnectionAndAPathAndNothingElse) {
    const testing::TemporaryDirectory directory;
    // A descriptor that somebody else opened for us, and a value that only we may know.
    const UniqueFd left_open(::fcntl(STDOUT_FILENO, F_DUPFD, 100));
    ::setenv("VMM_TEST_SECRET", "token", 1);
    const std::string before = std::getenv("PATH");
    directory.write("passt", "#!/bin/sh\n/usr/bin/env >" + (directory / "variables") + "\n{ " + kListDescriptors +
                                 "; } >" + (directory / "list") + "\n/bin/mv " + (directory / "list") + " " +
                                 (directory / "descriptors") + "\nread word <&3\n");
    ASSERT_EQ(::chmod((directory / "passt").c_str(), 0700), 0);
    ::setenv("PATH", directory.path().c_str(), 1);
    {
        const UserNetwork network({.user = true});
        ::setenv("PATH", before.c_str(), 1);
        ::unsetenv("VMM_TEST_SECRET");
        for (int i = 0; i < 2000 && ::access((directory / "descriptors").c_str(), F_OK) != 0; ++i) {
            ::usleep(5000);
        }
    }
    const std::string variables = testing::content_of(directory / "variables");
    EXPECT_TRUE(mentions(variables, "PATH=" + directory.path().string() + "\n")) << variables;
    EXPECT_FALSE(mentions(variables, "VMM_TEST_SECRET")) << variables;
    EXPECT_FALSE(mentions(variables, "HOME=")) << variables;
    // Descriptors from 10 on are the shell's own: the script.
    std::string descriptors = testing::content_of(directory / "descriptors");
    EXPECT_FALSE(mentions(descriptors, "100")) << descriptors;
    EXPECT_TRUE(descriptors.starts_with("0\n1\n")) << descriptors;
    EXPECT_TRUE(mentions(descriptors, "3\n")) << descriptors;
}

// A byte tells the child that it may begin. What broke: if the byte could not be sent, parent and child waited for each
// other for ever.
TEST(ChildProcessStart, ThatCannotTellTheChildToBeginIsAnError) {
    constexpr int kRefused = 10;
    constexpr int kBegan = 11;
    constexpr int kCannotRefuse = 12;
    constexpr unsigned kPatienceSeconds = 120;
    const pid_t process = ::fork(); // A refusal cannot be undone, so this runs in a process of its own.
    if (process == 0) {
        std::signal(SIGALRM, SIG_DFL);
        ::alarm(kPatienceSeconds);
        constexpr unsigned kBytes = 2; // the argument of write() that says how many
        if (!testing::refuse_calls(SYS_write, kBytes, 1)) {
            ::_exit(kCannotRefuse);
        }
        try {
            const ChildProcess child(shell("true"), "try it");
        } catch (const Error& error) {
            ::_exit(mentions(error.what(), "cannot try it: ") ? kRefused : kBegan);
        }
        ::_exit(kBegan);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(process, &status, 0), process);
    ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
    if (WEXITSTATUS(status) == kCannotRefuse) {
        GTEST_SKIP() << "this process may have no system calls of its own refused (seccomp)";
    }
    EXPECT_EQ(WEXITSTATUS(status), kRefused);
}

} // namespace
} // namespace vmm
