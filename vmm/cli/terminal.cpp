#include "vmm/cli/terminal.hpp"

#include <termios.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cassert>
#include <cerrno>
#include <csignal>
#include <cstdlib>

#include "kvm/host/error.hpp"
#include "vmm/cli/sandbox_alarm.hpp"
#include "vmm/output/stop_on_signals.hpp"

namespace vmm {

namespace {

/// The data of the signal handlers. It is written before `taken` is set and after it is cleared.
struct Taken {
    int fd = -1;
    termios before{};
    termios raw{};
};
Taken taken_terminal;
std::atomic<bool> taken{false};
static_assert(std::atomic<bool>::is_always_lock_free, "for use in a signal handler");

/// Every signal whose default action ends the process, except SIGKILL, real-time signals, and the signals on which a
/// program stops in an orderly way.
constexpr std::array kFatalSignals{SIGABRT, SIGALRM, SIGBUS,  SIGFPE,  SIGILL,  SIGIO,     SIGPROF, SIGPWR,
                                   SIGSEGV, SIGSYS,  SIGTRAP, SIGUSR1, SIGUSR2, SIGVTALRM, SIGXCPU, SIGSTKFLT};
constexpr std::array kJobControlSignals{SIGTSTP, SIGCONT};
std::array<struct sigaction, 65> actions_before{};

/// Sets the mode of the terminal, unless this process is in the background, because the attempt would stop it there. If
/// the kernel does not tell whether it is, the attempt is made. A call that fails is repeated after any error, because
/// a terminal that stays raw is useless. It uses TCSANOW, because TCSAFLUSH would wait for a terminal that has stopped
/// its output.
///
/// With `discard_input`, unread input is dropped. It was meant for the guest, and a shell could take a terminal's
/// answer to the guest for a command.
void set_mode(const termios& mode, bool discard_input) noexcept {
    const int error_number = errno;
    const pid_t foreground = ::tcgetpgrp(taken_terminal.fd);
    if (foreground < 0 || foreground == ::getpgrp()) {
        constexpr int kMostTries = 100;
        for (int tries = 0; tries < kMostTries; ++tries) {
            if (::tcsetattr(taken_terminal.fd, TCSANOW, &mode) == 0) {
                break;
            }
        }
        if (discard_input) {
            ::tcflush(taken_terminal.fd, TCIFLUSH);
        }
    }
    errno = error_number;
}

void restore() noexcept {
    if (taken.load()) {
        set_mode(taken_terminal.before, true);
    }
}

/// Restores the terminal, then lets the signal do what it would have done without this handler.
void on_fatal_signal(int signal, siginfo_t* info, void* context) {
    if (SandboxAlarm::takes_over(on_fatal_signal, signal, info)) {
        return;
    }
    const struct sigaction& before = actions_before[static_cast<std::size_t>(signal)];
    const bool has_details = (before.sa_flags & SA_SIGINFO) != 0;
    if (!has_details || signal != SIGBUS ||
        info->si_code != BUS_MCEERR_AO) { // then BrokenMemoryReport lets the process go on
        restore();
    }
    if (has_details) { // a fault that is raised again would lose its address
        before.sa_sigaction(signal, info, context);
        return;
    }
    ::sigaction(signal, &before, nullptr);
    ::raise(signal);
}

void on_job_control(int signal, siginfo_t* /*info*/, void* /*context*/) {
    if (signal == SIGTSTP) {
        restore();
        ::raise(SIGSTOP);
    } else if (taken.load()) {
        set_mode(taken_terminal.raw, false);
    }
}

/// Calls `change` with each handled signal and its handler.
template <typename Change>
void for_each_signal(Change change) {
    for (const int signal : kFatalSignals) {
        change(signal, on_fatal_signal);
    }
    for (int signal = SIGRTMIN; signal <= SIGRTMAX; ++signal) {
        change(signal, on_fatal_signal);
    }
    for (const int signal : kJobControlSignals) {
        change(signal, on_job_control);
    }
}

/// Installs the handler. A signal that the parent process has set to be ignored stays ignored.
void install(int signal, void (*handler)(int, siginfo_t*, void*)) {
    struct sigaction& before = actions_before[static_cast<std::size_t>(signal)];
    ::sigaction(signal, nullptr, &before);
    if (before.sa_handler == SIG_IGN) {
        return;
    }
    struct sigaction action {};
    action.sa_sigaction = handler;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigemptyset(&action.sa_mask);
    ::sigaction(signal, &action, nullptr);
}

/// A handler needs a stack of its own if the stack has overflowed.
void use_alternate_stack() {
    static std::array<char, 65536> memory;
    stack_t stack{};
    stack.ss_sp = memory.data();
    stack.ss_size = memory.size();
    ::sigaltstack(&stack, nullptr);
}

} // namespace

bool RawTerminal::is_available(int fd) noexcept {
    return ::isatty(fd) == 1 && ::tcgetpgrp(fd) == ::getpgrp();
}

RawTerminal::RawTerminal(int fd) {
    assert(!taken.load());
    if (::tcgetattr(fd, &taken_terminal.before) != 0) {
        throw_errno(errno, "read the mode of the terminal");
    }
    taken_terminal.fd = fd;
    taken_terminal.raw = taken_terminal.before;
    ::cfmakeraw(&taken_terminal.raw);
    taken_terminal.raw.c_oflag = taken_terminal.before.c_oflag;
    taken.store(true);
    use_alternate_stack();
    for_each_signal(install);
    set_last_act([] { restore(); });
    static const int kRegistered = std::atexit(restore);
    static_cast<void>(kRegistered);
    if (::tcsetattr(fd, TCSANOW, &taken_terminal.raw) != 0) {
        const int error_number = errno;
        taken.store(false);
        throw_errno(error_number, "put the terminal into raw mode");
    }
}

RawTerminal::~RawTerminal() {
    restore();
    set_last_act(nullptr);
    taken.store(false);
    for_each_signal([](int signal, void (*)(int, siginfo_t*, void*)) {
        ::sigaction(signal, &actions_before[static_cast<std::size_t>(signal)], nullptr);
    });
}

} // namespace vmm
