// Short actions that may wait for the guest, one after the other on a thread of their own.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace vmm::control {

/// Threads: any, except for construction and destruction.
class Actions {
  public:
    static constexpr std::size_t kMostWaiting = 64;

    /// Throws Error if the host gives no thread.
    Actions();
    /// Waits for the action that is under way. The others are dropped.
    ~Actions();
    Actions(const Actions&) = delete;
    Actions& operator=(const Actions&) = delete;

    /// Runs `action`, which must not throw, after the actions that were added before. If kMostWaiting actions are
    /// waiting, it drops `action` and returns false.
    [[nodiscard]] bool add(std::function<void()> action);

  private:
    void body();

    std::mutex lock_;
    std::condition_variable changed_;
    std::deque<std::function<void()>> waiting_;
    bool ending_ = false;
    std::thread thread_; // last: it uses all of the above
};

} // namespace vmm::control
