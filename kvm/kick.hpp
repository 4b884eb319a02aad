// Takes a vCPU out of the guest from another thread, without a race and without a signal handler.
//
// The kick is a real-time signal. Every vCPU thread keeps it blocked, and KVM unblocks it while the thread is inside
// KVM_RUN (KVM_SET_SIGNAL_MASK). A kick that comes a moment before KVM_RUN stays pending and ends that call at once, so
// no kick is lost. The signal is never delivered to user space. So no handler is installed, and the process stays as it
// is, as a library must leave it.
//
// The alternative, kvm_run::immediate_exit, needs a handler in the process and a flag to clear. It would save two
// changes of the signal mask for each exit to user space, but our hot paths (doorbells, interrupts) make no such exits.
// docs/threads.md has the argument in full.
#pragma once

#include <pthread.h>

#include <chrono>
#include <csignal>
#include <ctime>

namespace vmm::kvm {

/// Makes Vcpu::run() of `thread` return KickedExit: the call that is under way, or else the next one. `thread` must not
/// have been joined. Any thread may call it.
void kick(pthread_t thread) noexcept;

/// Kicks the thread that made this object every `interval`, as long as the object lives. So the thread leaves the guest
/// regularly, whatever the guest does, even if its vCPU waits in HLT and uses no processor time.
class RegularKicks {
  public:
    /// Throws Error if the host has no timer left.
    explicit RegularKicks(std::chrono::seconds interval);
    ~RegularKicks();
    RegularKicks(const RegularKicks&) = delete;
    RegularKicks& operator=(const RegularKicks&) = delete;

  private:
    timer_t timer_{};
};

/// The processor time that the calling thread has used, in seconds.
[[nodiscard]] double cpu_seconds_of_this_thread() noexcept;

/// Discards all kicks that are pending for the calling thread.
void discard_pending_kicks() noexcept;

/// Waits for a kick of the calling thread and consumes it. Returns false if none comes within `time`.
[[nodiscard]] bool was_kicked_within(std::chrono::milliseconds time) noexcept;

} // namespace vmm::kvm
