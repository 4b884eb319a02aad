// The signals that end a program.
#include "vmm/output/stop_on_signals.hpp"

#include <gtest/gtest.h>

#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <thread>

namespace vmm {
namespace {

std::array<int, 2> ends{-1, -1}; ///< of a pipe from the process under test

void tell(char what) {
    [[maybe_unused]] const auto put = ::write(ends[1], &what, 1);
}

char hear() {
    char what = '\0';
    return ::read(ends[0], &what, 1) == 1 ? what : '\0';
}

class StopOnSignalsTest : public ::testing::Test {
  protected:
    void SetUp() override { ASSERT_EQ(::pipe(ends.data()), 0); }
    void TearDown() override {
        ::close(ends[0]);
        ::close(ends[1]);
    }
    static int status_of(pid_t process) {
        int status = 0;
        EXPECT_EQ(::waitpid(process, &status, 0), process);
        return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    }
};

// What broke: only SIGKILL ended a vmm that was busy with its end.
TEST_F(StopOnSignalsTest, ASecondOneEndsAProcessThatDoesNotStopAndGivesBackItsTerminal) {
    const pid_t process = ::fork();
    if (process == 0) {
        StopRequest stop;
        const StopOnSignals signals(stop);
        set_last_act([] { tell('l'); });
        tell('r');
        while (!stop.is_requested()) {
            ::usleep(1000);
        }
        tell('s');
        while (true) {
            ::pause();
        }
    }
    EXPECT_EQ(hear(), 'r');
    ::kill(process, SIGTERM);
    EXPECT_EQ(hear(), 's');
    std::this_thread::sleep_for(std::chrono::milliseconds(150));
    ::kill(process, SIGTERM);
    EXPECT_EQ(hear(), 'l');
    EXPECT_EQ(status_of(process), 4);
}

// timeout(1) sends the signal to its child, and then to its whole group.
TEST_F(StopOnSignalsTest, TwoAtOnceAreOneRequest) {
    const pid_t process = ::fork();
    if (process == 0) {
        StopRequest stop;
        const StopOnSignals signals(stop);
        sigset_t both;
        sigemptyset(&both);
        sigaddset(&both, SIGTERM);
        sigaddset(&both, SIGINT);
        ::sigprocmask(SIG_BLOCK, &both, nullptr);
        ::raise(SIGTERM);
        ::raise(SIGINT);
        ::sigprocmask(SIG_UNBLOCK, &both, nullptr);
        ::_exit(stop.is_requested() ? 7 : 8);
    }
    EXPECT_EQ(status_of(process), 7);
}

} // namespace
} // namespace vmm
