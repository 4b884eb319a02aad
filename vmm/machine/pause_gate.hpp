// The gate at which the vCPUs of a paused machine wait.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <mutex>

namespace vmm {

/// Each vCPU passes the gate before it enters the guest. Threads: any; note_vcpu_thread() and pass() are for the
/// threads of vCPUs.
class PauseGate {
  public:
    /// Kicks every vCPU's thread.
    using KickAll = std::function<void()>;

    /// From now on `vcpus` threads pass, and `kick_all` takes them out of the guest, until close().
    void open(std::size_t vcpus, KickAll kick_all);
    /// Opens the gate for good. The vCPUs that wait here go on, and so does whoever waits for them in pause().
    void close();

    /// Throws UsageError in the thread of a vCPU of this gate, which would wait for itself in pause().
    void check_thread() const;
    /// Returns true when no vCPU is in the guest any more, or resume() or close() was called. Before open() it returns
    /// at once, and the guest begins when it is resumed. Returns false if a vCPU has not come here by `deadline`;
    /// those that have come go on waiting.
    [[nodiscard]] bool pause(std::chrono::steady_clock::time_point deadline);
    void resume();

    /// Holds all vCPUs for a while, whether or not there is a pause: between these two they come here and wait. hold()
    /// does not wait for them. Nothing changes after close().
    void hold();
    void let_go();

    /// Whether a vCPU that comes here has to wait.
    [[nodiscard]] bool is_shut() const noexcept {
        return wanted_.load(std::memory_order_acquire) || held_.load(std::memory_order_acquire);
    }

    void note_vcpu_thread() noexcept;
    void pass() {
        if (is_shut()) {
            wait();
        }
    }

  private:
    void wait();

    std::mutex lock_;
    std::condition_variable changed_;
    std::atomic<bool> wanted_{false};
    std::atomic<bool> held_{false};
    bool closed_ = false;
    std::size_t vcpus_ = 0;
    std::size_t waiting_ = 0;
    KickAll kick_all_;
};

} // namespace vmm
