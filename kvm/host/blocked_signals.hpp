// Blocks the signals of the process in threads that do not expect them.
#pragma once

#include <csignal>

namespace vmm {

/// Blocks every signal but faults in the calling thread; kicks (kvm/kick.hpp) are blocked, too. A thread calls it once
/// before its first kvm::Vcpu::run(), so that signals of the process go to threads that expect them. Throws Error.
void block_signals_in_this_thread();

/// Blocks every signal but faults in the calling thread, as long as the object lives. Threads that are created
/// meanwhile inherit the blocked signals, so a kick cannot reach a new thread before it has blocked signals itself.
class AllSignalsBlocked {
  public:
    /// Throws Error.
    AllSignalsBlocked();
    ~AllSignalsBlocked();
    AllSignalsBlocked(const AllSignalsBlocked&) = delete;
    AllSignalsBlocked& operator=(const AllSignalsBlocked&) = delete;

  private:
    sigset_t before_;
};

} // namespace vmm
