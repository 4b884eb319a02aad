// The signals by which a user or an init system ends a program.
#pragma once

#include <array>
#include <csignal>

#include "kvm/host/event_fd.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {

/// What is done before a second signal ends the process: giving something back that would outlive it. It runs in a
/// signal handler. Null: nothing. Threads: any.
void set_last_act(void (*act)()) noexcept;
/// Does what set_last_act() was told, before another end of the process.
void perform_last_act() noexcept;

/// The signals that end a program.
inline constexpr std::array kStopSignals{SIGINT, SIGTERM, SIGHUP, SIGQUIT};

/// While it lives, SIGINT, SIGTERM, SIGHUP and SIGQUIT end the process at once, with a status: for the time in which
/// there is nothing yet to give back, whatever is waited for meanwhile. One that our parent had us ignore (nohup) stays
/// ignored. For programs, not for the library. At most one exists at a time. Threads: the main one.
class ExitOnSignals {
  public:
    explicit ExitOnSignals(int status);
    ~ExitOnSignals();
    ExitOnSignals(const ExitOnSignals&) = delete;
    ExitOnSignals& operator=(const ExitOnSignals&) = delete;

  private:
    std::array<struct sigaction, kStopSignals.size()> before_{};
};

/// While it lives, SIGINT, SIGTERM, SIGHUP and SIGQUIT request a stop instead of ending the process;
/// afterwards they do what they did before. A second one, a tenth of a second or more after the first, ends the process
/// at once, with status 4. One that our parent had us ignore (nohup) stays ignored. For programs, not for the library:
/// dispositions belong to the process. At most one exists at a time. Threads: the main one.
class StopOnSignals {
  public:
    explicit StopOnSignals(StopRequest& stop);
    ~StopOnSignals();
    StopOnSignals(const StopOnSignals&) = delete;
    StopOnSignals& operator=(const StopOnSignals&) = delete;

    /// Readable from the first of these signals on, also where another reason to stop had come before it.
    [[nodiscard]] int fd() const noexcept { return signalled_.fd(); }

  private:
    static void on_signal(int signal);
    StopRequest& stop_;
    EventFd signalled_;
    std::array<struct sigaction, kStopSignals.size()> before_{};
};

} // namespace vmm
