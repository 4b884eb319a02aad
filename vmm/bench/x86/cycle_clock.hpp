// How long a cycle of the time-stamp counter is.
#pragma once

#include <chrono>
#include <cstdint>

namespace vmm::bench {

/// The duration of a cycle of the time-stamp counter, in which the built-in guest counts. The guest's counter runs at
/// the host's rate, because nobody asked for another one (Documentation/virt/kvm/api.rst, KVM_SET_TSC_KHZ). It is
/// measured against the monotonic clock since construction, so it gets better with time.
/// Threads: one.
class CycleClock {
  public:
    CycleClock();
    /// Waits until 20 ms have passed since construction.
    [[nodiscard]] double seconds_per_cycle() const;

  private:
    std::chrono::steady_clock::time_point started_;
    std::uint64_t cycles_;
};

} // namespace vmm::bench
