// Slows down a guest that changes memory too fast.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>

#include "vmm/machine/pause_gate.hpp"

namespace vmm {

/// While it lives, it holds all vCPUs for a part of the time, again and again. It has a thread of its own from the
/// first hold on.
///
/// Threads: one.
class VcpuThrottle {
  public:
    /// `gate` must outlive it.
    explicit VcpuThrottle(PauseGate& gate) : gate_(gate) {}
    /// Lets the vCPUs go.
    ~VcpuThrottle();
    VcpuThrottle(const VcpuThrottle&) = delete;
    VcpuThrottle& operator=(const VcpuThrottle&) = delete;

    /// From now on vCPUs are held for `percent` (0 to 99) of the time. Throws Error if the host gives no thread.
    void set_percent(unsigned percent);
    [[nodiscard]] unsigned percent() const noexcept { return percent_; }

  private:
    void hold_by_turns();

    PauseGate& gate_;
    std::mutex lock_; ///< guards all below, but for the thread
    std::condition_variable changed_;
    unsigned percent_ = 0;
    bool is_over_ = false;
    std::thread thread_;
};

} // namespace vmm
