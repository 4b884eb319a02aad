// Taking a vCPU out of the guest from another thread, without a race and without a signal handler.
//
// The kick is a real-time signal that every vCPU thread keeps blocked, and that KVM unblocks for the time it is inside
// KVM_RUN (KVM_SET_SIGNAL_MASK). A kick that comes a moment before KVM_RUN stays pending and ends that call at once, so
// none is ever lost; and because the signal is never delivered to user space, no handler is installed and nothing of
// the process is changed, which a library must not do. The other way, kvm_run::immediate_exit, needs a handler in the
// process and a flag to clear; what it saves is two changes of the signal mask for each exit to user space, and our hot
// paths (doorbells, interrupts) make no such exits. docs/threads.md has the argument in full.
#pragma once

#include <pthread.h>

#include <chrono>
#include <csignal>
#include <ctime>

namespace vmm::kvm {

/// Makes the thread's Vcpu::run(), the present one or else the next, return KickedExit. `thread` must not have been
/// joined. Any thread may call it.
void kick(pthread_t thread) noexcept;

/// Kicks the thread that made it every `interval` for as long as it lives: so that whatever a guest makes of its vCPU,
/// one that waits in HLT and uses no processor time included, its thread looks up now and then.
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

/// Processor time the calling thread has used, in seconds.
[[nodiscard]] double cpu_seconds_of_this_thread() noexcept;

/// Forgets kicks that wait for the calling thread.
void discard_pending_kicks() noexcept;

/// Waits for a kick of the calling thread, and forgets it. False if none comes within `time`.
[[nodiscard]] bool was_kicked_within(std::chrono::milliseconds time) noexcept;

} // namespace vmm::kvm
