// The signals by which a user or an init system ends a program.
#pragma once

#include <array>
#include <csignal>

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

  private:
    static constexpr std::array kSignals{SIGINT, SIGTERM, SIGHUP, SIGQUIT};
    std::array<struct sigaction, kSignals.size()> before_{};
};

} // namespace vmm
