// The request through which a machine is stopped. It is the same for everybody who stops it.
#pragma once

#include <atomic>
#include <string_view>

#include "kvm/host/event_fd.hpp"
#include "kvm/host/export.hpp"

VMM_API_BEGIN
namespace vmm {

/// Why a machine stopped.
enum class ExitReason {
    kPowerOff, ///< the guest switched itself off
    kReboot,   ///< the guest asked for a reset
    kCrash,    ///< a vCPU cannot go on: triple fault, or an error inside KVM
    kSignal,   ///< a signal to this process asked for it
    kStopped,  ///< the program that embeds the machine, or the person at the terminal, asked for it
    kMigrated, ///< the guest runs elsewhere (Machine::migrate())
    kSandbox,  ///< a confined thread made a call that it never makes (Config::sandbox)
};

/// The name used in the report: "poweroff", "reboot", "crash", "signal", "stopped", "migrated", "sandbox".
[[nodiscard]] std::string_view to_string(ExitReason reason) noexcept;

/// A request to stop. Only the first request counts. Threads: any; request() may also be called from a signal handler.
class StopRequest {
  public:
    void request(ExitReason reason) noexcept;
    /// Requests a stop because something failed. A failure has no ExitReason of its own.
    void request_for_failure() noexcept;

    [[nodiscard]] bool is_requested() const noexcept { return state_.load(std::memory_order_acquire) != kNone; }
    [[nodiscard]] bool is_requested_for(ExitReason reason) const noexcept {
        return state_.load(std::memory_order_acquire) == static_cast<int>(reason);
    }
    /// The first reason; kStopped if nothing was requested, or if something failed.
    [[nodiscard]] ExitReason reason() const noexcept;

    /// A descriptor that becomes readable with the first request and stays so. It is a loan.
    [[nodiscard]] int fd() const noexcept { return event_.fd(); }

  private:
    static constexpr int kNone = -1;
    static constexpr int kFailure = -2;
    void set(int state) noexcept;

    EventFd event_;
    std::atomic<int> state_{kNone};
    static_assert(std::atomic<int>::is_always_lock_free, "for use in a signal handler");
};

} // namespace vmm
VMM_API_END
