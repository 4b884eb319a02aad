// What remains in a terminal's input when the terminal is given back.

#include "vmm/cli/terminal.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "kvm/host/unique_fd.hpp"
#include "support/host_pipe.hpp"
#include "support/host_refused_call.hpp"

namespace vmm {
namespace {

using testing::write_text;

constexpr std::string_view kReply = "\x1b[12;34R"; // a terminal's answer to "where is the cursor?"

constexpr int kCannotRefuse = 99;

/// Runs `ending` in a process of its own, with the terminal in raw mode and `kReply` waiting to be read. Returns how
/// many bytes a shell would find there afterwards.
int left_after(void (*ending)(std::optional<RawTerminal>& taken)) {
    int screen = -1;
    // The terminal may be stopped, and a write to it then waits for ever. ThreadSanitizer writes at _exit(), too:
    // buffered output, and reports about this program.
    std::fflush(nullptr);
    const UniqueFd errors(::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0));
    const pid_t child = ::forkpty(&screen, nullptr, nullptr, nullptr);
    if (child == 0) {
        ::dup2(errors.get(), STDERR_FILENO);
        std::optional<RawTerminal> taken(std::in_place, STDIN_FILENO);
        write_text(STDOUT_FILENO, "raw");
        pollfd ready{STDIN_FILENO, POLLIN, 0};
        ::poll(&ready, 1, -1);
        ending(taken);
        ::_exit(0);
    }
    const UniqueFd screen_fd(screen);
    const UniqueFd line(::open(::ptsname(screen), O_RDWR | O_NOCTTY | O_CLOEXEC));
    std::string shown;
    while (shown.find("raw") == std::string::npos) {
        char c = 0;
        if (::read(screen, &c, 1) <= 0) {
            return -1;
        }
        shown += c;
    }
    write_text(screen, kReply);
    int status = 0;
    ::waitpid(child, &status, 0);
    termios mode{};
    ::tcgetattr(line.get(), &mode);
    EXPECT_NE(mode.c_lflag & ICANON, 0U) << "it is given back";
    mode.c_lflag &= ~static_cast<tcflag_t>(ICANON); // a line without an end counts, too
    ::tcsetattr(line.get(), TCSANOW, &mode);
    int left = -1;
    ::ioctl(line.get(), FIONREAD, &left);
    return left;
}

TEST(RawTerminalEnd, LeavesNoUnreadReplyToTheShell) {
    EXPECT_EQ(left_after([](std::optional<RawTerminal>& taken) { taken.reset(); }), 0);
}

TEST(RawTerminalEnd, BySignalOrExitLeavesNoUnreadReplyToTheShell) {
    EXPECT_EQ(left_after([](std::optional<RawTerminal>&) { ::raise(SIGUSR1); }), 0);
    EXPECT_EQ(left_after([](std::optional<RawTerminal>&) { ::raise(SIGSEGV); }), 0);
    EXPECT_EQ(left_after([](std::optional<RawTerminal>&) { std::exit(1); }), 0);
}

TEST(RawTerminalEnd, OfAStoppedTerminalWaitsForNobody) {
    EXPECT_EQ(left_after([](std::optional<RawTerminal>& taken) {
                  ::tcflow(STDIN_FILENO, TCOOFF);
                  taken.reset();
              }),
              0);
}

// What broke: if the kernel did not say which processes are in the foreground, that was taken for "not us", and the
// terminal stayed raw.
TEST(RawTerminalEnd, WithoutKnowingTheForegroundGivesTheTerminalBack) {
    EXPECT_EQ(left_after([](std::optional<RawTerminal>& taken) {
                  if (!testing::refuse_calls(SYS_ioctl, 1, TIOCGPGRP) || ::tcgetpgrp(STDIN_FILENO) >= 0) {
                      ::_exit(kCannotRefuse);
                  }
                  taken.reset();
              }),
              0);
}

} // namespace
} // namespace vmm
