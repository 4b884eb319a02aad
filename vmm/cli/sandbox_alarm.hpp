// What happens when a confined thread tries what it may not.
#pragma once

#include <csignal>
#include <memory>
#include <thread>

#include "kvm/host/event_fd.hpp"
#include "vmm/cli/messages.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {

/// While it lives, a call that the sandbox refuses ends the run (ExitReason::kSandbox) instead of the process: the
/// thread that tried it ends at once, the call is named on standard error, and the report is written. If that takes
/// longer than five seconds, because that thread held what the others need, the process ends without it. For programs,
/// not for the library: dispositions of signals belong to the process. At most one exists at a time. Threads: the main
/// one.
class SandboxAlarm {
  public:
    /// Both outlive it. Throws Error: the host has no thread for it.
    SandboxAlarm(StopRequest& stop, Messages& messages);
    ~SandboxAlarm();
    SandboxAlarm(const SandboxAlarm&) = delete;
    SandboxAlarm& operator=(const SandboxAlarm&) = delete;

  private:
    static void on_signal(int signal, siginfo_t* info, void* context);
    void watch();
    void say() const;

    StopRequest& stop_;
    Messages& messages_;
    EventFd raised_;
    EventFd over_;
    struct sigaction before_ {};
    std::thread thread_; // last: it uses all of the above
};

} // namespace vmm
