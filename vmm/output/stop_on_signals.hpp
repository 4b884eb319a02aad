// The signals by which a user or an init system ends a program.
#pragma once

#include <array>
#include <csignal>

#include "kvm/host/event_fd.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {

/// Sets what is done before a second signal ends the process: it gives back something that would outlive the process.
/// It runs in a signal handler. Null: nothing is done. Threads: any.
void set_last_act(void (*act)()) noexcept;
/// Calls the function of set_last_act(), before the process ends in another way.
void perform_last_act() noexcept;

/// The signals that end a program.
inline constexpr std::array kStopSignals{SIGINT, SIGTERM, SIGHUP, SIGQUIT};

/// While it lives, SIGINT, SIGTERM, SIGHUP and SIGQUIT end the process at once, with a status. It is for the time in
/// which the process has nothing yet to give back, whatever it waits for. A signal that the parent process has set to
/// be ignored (nohup) stays ignored. It is for programs, not for the library. At most one exists at a time. Threads:
/// the main one.
class ExitOnSignals {
  public:
    explicit ExitOnSignals(int status);
    ~ExitOnSignals();
    ExitOnSignals(const ExitOnSignals&) = delete;
    ExitOnSignals& operator=(const ExitOnSignals&) = delete;

  private:
    std::array<struct sigaction, kStopSignals.size()> before_{};
};

/// While it lives, SIGINT, SIGTERM, SIGHUP and SIGQUIT request a stop instead of ending the process; afterwards they do
/// what they did before. A second signal, a tenth of a second or more after the first, ends the process at once, with
/// status 4. A signal that the parent process has set to be ignored (nohup) stays ignored. It is for programs, not for
/// the library, because signal dispositions belong to the process. At most one exists at a time. Threads: the main one.
class StopOnSignals {
  public:
    explicit StopOnSignals(StopRequest& stop);
    ~StopOnSignals();
    StopOnSignals(const StopOnSignals&) = delete;
    StopOnSignals& operator=(const StopOnSignals&) = delete;

    /// It is readable from the first of these signals on, even if a stop was requested before for another reason.
    [[nodiscard]] int fd() const noexcept { return signalled_.fd(); }

  private:
    static void on_signal(int signal);
    StopRequest& stop_;
    EventFd signalled_;
    std::array<struct sigaction, kStopSignals.size()> before_{};
};

} // namespace vmm
