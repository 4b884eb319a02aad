// What happens when a confined thread tries what it may not, or faults.
#pragma once

#include <csignal>
#include <functional>
#include <string_view>
#include <thread>

#include "kvm/host/event_fd.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {

/// While it lives, a call that the sandbox refuses ends the run (ExitReason::kSandbox) instead of the process: the
/// thread that tried it ends at once, the call is named on standard error, and the report is written. If that takes
/// longer than five seconds, because that thread held what the others need, the process ends without it. For programs,
/// not for the library: dispositions of signals belong to the process. At most one exists at a time. Threads: the main
/// one.
class SandboxAlarm {
  public:
    /// `stop` outlives it. `say` tells people of an error; it is called on another thread. Throws Error: the host has
    /// no thread for it.
    SandboxAlarm(StopRequest& stop, std::function<void(std::string_view error)> say);
    ~SandboxAlarm();
    SandboxAlarm(const SandboxAlarm&) = delete;
    SandboxAlarm& operator=(const SandboxAlarm&) = delete;

    using Handler = void (*)(int signal, siginfo_t* info, void* context);
    /// For handlers of faults, which do what a confined thread may not: give a terminal back, end the process. If the
    /// calling thread is confined, this has `handler` called for it by a thread that is not, without a context, and
    /// returns true when it has returned. False: the caller is to go on. It may be called in a signal handler.
    [[nodiscard]] static bool takes_over(Handler handler, int signal, siginfo_t* info) noexcept;

  private:
    static void on_signal(int signal, siginfo_t* info, void* context);
    void watch();
    void say() const;
    static void run_errand() noexcept;

    StopRequest& stop_;
    const std::function<void(std::string_view)> say_;
    EventFd raised_;
    EventFd over_;
    struct sigaction before_ {};
    std::thread thread_; // last: it uses all of the above
};

} // namespace vmm
