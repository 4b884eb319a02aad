// The gate at which the vCPUs of a paused machine wait.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <mutex>

namespace vmm {

/// Each vCPU passes the gate before it enters the guest. Threads: any, but note_vcpu_thread() and pass() are for the
/// threads of vCPUs.
class PauseGate {
  public:
    /// Kicks every vCPU's thread.
    using KickAll = std::function<void()>;

    /// From now on, until close(), `vcpus` threads pass the gate, and `kick_all` takes them out of the guest.
    void open(std::size_t vcpus, KickAll kick_all);
    /// Opens the gate for good. The vCPUs that wait here go on, and a pause() that waits for them returns.
    void close();

    /// Throws UsageError on the thread of a vCPU of this gate, because it would wait for itself in pause().
    void check_thread() const;
    /// Returns true when no vCPU is in the guest any more, or when resume() or close() was called. Before open() it
    /// returns at once, and the guest does not begin until it is resumed. Returns false if a vCPU has not come here by
    /// `deadline`; vCPUs that have come go on waiting.
    [[nodiscard]] bool pause(std::chrono::steady_clock::time_point deadline);
    void resume();

    /// Hold all vCPUs for a while, whether or not there is a pause: between hold() and let_go() they come here and
    /// wait. hold() does not wait for them. After close() both do nothing.
    void hold();
    void let_go();

    /// Whether a vCPU that comes here must wait.
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
