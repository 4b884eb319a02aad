// The signal that a kick uses. For kick.cpp and vcpu.cpp only.
#pragma once

#include <csignal>

namespace vmm::kvm {

/// The lowest real-time signal that the C library leaves to programs. It is sent only to single threads of ours that
/// block it, so another use of the same signal in this process is not disturbed.
inline int kick_signal() noexcept {
    return SIGRTMIN;
}

} // namespace vmm::kvm
