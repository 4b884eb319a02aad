// Short actions that may wait for the guest, one after the other on a thread of their own.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace vmm::control {

/// Threads: any, but for construction and destruction.
class Actions {
  public:
    static constexpr std::size_t kMostWaiting = 64;

    /// Throws Error if the host gives no thread.
    Actions();
    /// Waits for the action that is under way. The others never begin.
    ~Actions();
    Actions(const Actions&) = delete;
    Actions& operator=(const Actions&) = delete;

    /// Does `action`, which does not throw, after those that were added before. Returns false, and forgets it, if
    /// kMostWaiting are waiting.
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
