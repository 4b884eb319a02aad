// The user's terminal: the effect of the keys, and that the terminal is given back whenever the command ends.

#include <gtest/gtest.h>

#include "support/kvm_command.hpp"
#include "support/kvm_require.hpp"

namespace vmm::testing {
namespace {

/// The built-in guest, busy for longer than any test takes.
const std::vector<std::string> kEndlessGuest{"run", "-m", "64M", "--cmdline", "passes=1000000"};

class Terminal : public KvmTest {
  protected:
    /// Waits until the guest has the terminal and runs. All threads exist then: ThreadSanitizer itself faults if a
    /// signal reaches a thread that is being made.
    void SetUp() override {
        KvmTest::SetUp();
        if (!IsSkipped() && !HasFatalFailure()) {
            command_.emplace(kEndlessGuest);
            ASSERT_TRUE(eventually([this] { return command_->screen().find("pass=2") != std::string::npos; }))
                << command_->screen();
            ASSERT_TRUE(command_->is_raw());
        }
    }

    /// Ends the command by `signal` and expects to find the terminal as it was.
    void expect_restored_after(int signal) {
        command_->send(signal);
        const int status = command_->wait();
        EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == signal) << status;
        EXPECT_TRUE(command_->is_as_before());
    }

    std::optional<CommandAtTerminal> command_;
};

TEST_F(Terminal, StopKeyEndsTheGuestWithStatusZero) {
    command_->type("\x01x");
    const int status = command_->wait();
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 0);
    EXPECT_TRUE(command_->is_as_before());
}

TEST_F(Terminal, HelpKeyShowsTheKeys) {
    command_->type("\x01h");
    EXPECT_TRUE(eventually([this] { return command_->screen().find("Ctrl-A x") != std::string::npos; }));
}

TEST_F(Terminal, InterruptKeyGoesToTheGuest) {
    command_->type("\x03");
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    EXPECT_TRUE(command_->is_raw());
    command_->type("\x01x");
    EXPECT_EQ(command_->wait(), 0);
}

TEST_F(Terminal, IsRestoredWhenASignalAsksUsToEnd) {
    command_->send(SIGTERM);
    const int status = command_->wait();
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 4);
    EXPECT_TRUE(command_->is_as_before());
}

TEST_F(Terminal, IsRestoredAfterSegmentationFault) {
    expect_restored_after(SIGSEGV);
}

TEST_F(Terminal, IsRestoredAfterBusError) {
    expect_restored_after(SIGBUS);
}

TEST_F(Terminal, IsRestoredAfterAbort) {
    expect_restored_after(SIGABRT);
}

TEST_F(Terminal, IsRestoredAfterASignalNobodyExpects) {
    expect_restored_after(SIGUSR1);
}

TEST_F(Terminal, IsRestoredWhenAVcpuThreadFaults) {
#ifdef VMM_THREAD_SANITIZED
    GTEST_SKIP() << "ThreadSanitizer delays the handlers of signals that are sent to a thread";
#endif
    ASSERT_TRUE(eventually([this] { return command_->send_to_thread(SIGSEGV, "vcpu0"); }));
    const int status = command_->wait();
    EXPECT_TRUE(WIFSIGNALED(status)) << status;
    EXPECT_TRUE(command_->is_as_before());
}

TEST_F(Terminal, IsGivenBackWhileStoppedAndTakenAgain) {
    command_->send(SIGTSTP);
    ASSERT_TRUE(eventually([this] { return command_->is_stopped(); }));
    EXPECT_TRUE(command_->is_as_before());
    command_->send(SIGCONT);
    EXPECT_TRUE(eventually([this] { return command_->is_raw(); }));
}

} // namespace
} // namespace vmm::testing
