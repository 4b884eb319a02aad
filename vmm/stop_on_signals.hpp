// The signals by which a user or an init system ends a program.
#pragma once

#include <array>
#include <csignal>

#include "vmm/event_fd.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {

/// While it lives, SIGINT, SIGTERM, SIGHUP and SIGQUIT request a stop instead of ending the process;
/// afterwards they do what they did before. One that our parent had us ignore (nohup) stays ignored. For programs, not
/// for the library: dispositions belong to the process. At most one exists at a time. Threads: the main one.
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
    static constexpr std::array kSignals{SIGINT, SIGTERM, SIGHUP, SIGQUIT};
    StopRequest& stop_;
    EventFd signalled_;
    std::array<struct sigaction, kSignals.size()> before_{};
};

} // namespace vmm
