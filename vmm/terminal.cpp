#include "vmm/terminal.hpp"

#include <termios.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cassert>
#include <cerrno>
#include <csignal>
#include <cstdlib>

#include "kvm/error.hpp"

namespace vmm {

namespace {

/// What a signal handler needs. Written before `taken` is set and after it is cleared.
struct Taken {
    int fd = -1;
    termios before{};
    termios raw{};
};
Taken taken_terminal;
std::atomic<bool> taken{false};
static_assert(std::atomic<bool>::is_always_lock_free, "for use in a signal handler");

/// Every signal whose default action ends the process, but SIGKILL and those a program stops in order by.
constexpr std::array kFatalSignals{SIGABRT, SIGALRM, SIGBUS,  SIGFPE,  SIGILL,  SIGIO,     SIGPROF, SIGPWR,
                                   SIGSEGV, SIGSYS,  SIGTRAP, SIGUSR1, SIGUSR2, SIGVTALRM, SIGXCPU, SIGSTKFLT};
constexpr std::array kJobControlSignals{SIGTSTP, SIGCONT};
std::array<struct sigaction, 65> actions_before{};

void set_mode(const termios& mode) noexcept {
    const int error_number = errno;
    while (::tcsetattr(taken_terminal.fd, TCSADRAIN, &mode) != 0 && errno == EINTR) {
    }
    errno = error_number;
}

void restore() noexcept {
    if (taken.load()) {
        set_mode(taken_terminal.before);
    }
}

/// Gives the terminal back, then lets the signal do what it would have done without us.
void on_fatal_signal(int signal) {
    restore();
    ::sigaction(signal, &actions_before[static_cast<std::size_t>(signal)], nullptr);
    ::raise(signal);
}

void on_job_control(int signal) {
    if (signal == SIGTSTP) {
        restore();
        ::raise(SIGSTOP);
    } else if (taken.load() && ::tcgetpgrp(taken_terminal.fd) == ::getpgrp()) {
        set_mode(taken_terminal.raw);
    }
}

void install(int signal, void (*handler)(int)) {
    struct sigaction action {};
    action.sa_handler = handler;
    action.sa_flags = SA_ONSTACK | SA_RESTART;
    sigemptyset(&action.sa_mask);
    ::sigaction(signal, &action, &actions_before[static_cast<std::size_t>(signal)]);
}

/// A handler for an overflown stack needs one of its own.
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
    for (const int signal : kFatalSignals) {
        install(signal, on_fatal_signal);
    }
    for (const int signal : kJobControlSignals) {
        install(signal, on_job_control);
    }
    static const int registered = std::atexit(restore);
    static_cast<void>(registered);
    if (::tcsetattr(fd, TCSADRAIN, &taken_terminal.raw) != 0) {
        const int error_number = errno;
        taken.store(false);
        throw_errno(error_number, "put the terminal into raw mode");
    }
}

RawTerminal::~RawTerminal() {
    restore();
    taken.store(false);
    for (const int signal : kFatalSignals) {
        ::sigaction(signal, &actions_before[static_cast<std::size_t>(signal)], nullptr);
    }
    for (const int signal : kJobControlSignals) {
        ::sigaction(signal, &actions_before[static_cast<std::size_t>(signal)], nullptr);
    }
}

} // namespace vmm
