// A thread that serves a device, or a part of it.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <semaphore>
#include <string>
#include <thread>

#include "devices/virtio/device.hpp"
#include "vmm/sandbox/thread_kind.hpp"

namespace vmm {

/// Returns how the threads of such a device are confined.
[[nodiscard]] ThreadKind thread_kind_of(devices::virtio::DeviceId device) noexcept;

/// A thread whose end can be waited for with a deadline. It ends when its body returns.
///
/// Threads: the one that made it.
class DeviceThread {
  public:
    /// `name` is at most 15 bytes long. `body` must not throw. Throws Error if the host cannot make a thread.
    DeviceThread(const std::string& name, std::function<void()> body);
    /// Waits until the thread has ended.
    ~DeviceThread() { join(); }
    DeviceThread(const DeviceThread&) = delete;
    DeviceThread& operator=(const DeviceThread&) = delete;

    void join() noexcept;
    /// Waits no longer than until `deadline`. Returns false if the thread still runs then.
    [[nodiscard]] bool join_until(std::chrono::steady_clock::time_point deadline) noexcept;

  private:
    [[nodiscard]] bool has_vanished() const noexcept;

    std::atomic<pid_t> id_ = 0;
    std::binary_semaphore ended_{0}; ///< the body has returned
    std::thread thread_;             // last: it uses all of the above
};

} // namespace vmm
