// Ends the run when a confined thread makes a call that is not allowed, or faults.
#pragma once

#include <csignal>
#include <functional>
#include <string_view>
#include <thread>

#include "kvm/host/event_fd.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {

/// While it lives, a call that the sandbox refuses ends the run (ExitReason::kSandbox) and not the process: the thread
/// that made the call ends at once, standard error names the call, and the report is written. If that takes longer than
/// five seconds, because the thread held a lock that others need, the process ends without the report. It is for
/// programs, not for the library, because signal dispositions belong to the process. At most one exists at a time.
/// Threads: the main one.
class SandboxAlarm {
  public:
    /// `stop` must outlive it. `say` shows an error to people; it is called on another thread. Throws Error if the host
    /// gives no thread.
    SandboxAlarm(StopRequest& stop, std::function<void(std::string_view error)> say);
    ~SandboxAlarm();
    SandboxAlarm(const SandboxAlarm&) = delete;
    SandboxAlarm& operator=(const SandboxAlarm&) = delete;

    using Handler = void (*)(int signal, siginfo_t* info, void* context);
    /// For handlers of faults, which must do what a confined thread may not: restore a terminal, end the process. If
    /// the calling thread is confined, a thread that is not confined calls `handler`, without a context, and
    /// takes_over() returns true when `handler` has returned. If it returns false, the caller must do the work itself.
    /// It may be called in a signal handler.
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
