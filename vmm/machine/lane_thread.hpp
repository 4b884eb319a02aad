// The thread of a lane of a virtio device.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <exception>
#include <span>
#include <string>

#include "devices/virtio/device.hpp"
#include "kvm/host/event_fd.hpp"
#include "vmm/machine/device_thread.hpp"
#include "vmm/machine/event_loop.hpp"
#include "vmm/machine/source_watch.hpp"
#include "vmm/sandbox/sandbox.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {

/// Serves the doorbells and descriptors of a lane from construction until it is destroyed. Whatever else becomes of the
/// device, its own thread does (VirtioThread).
///
/// Threads: the one that made it, but for end(): any.
class LaneThread {
  public:
    /// How the lane is reached. All of it outlives the thread.
    struct Wiring {
        devices::virtio::Lane& lane;
        std::string name; ///< at most 15 bytes
        ThreadKind kind{};
        std::deque<EventFd>& doorbells; ///< of the whole device, by queue
        StopRequest& stop;              ///< for a failure of the host's
        const Sandbox& sandbox;         ///< while the thread begins
        std::atomic<std::uint64_t>* rung = nullptr;
        std::span<const unsigned> cpus = {}; ///< that it runs on; empty: any
    };

    /// Throws Error: the host cannot make a thread.
    explicit LaneThread(Wiring wiring);
    ~LaneThread() { join(); }
    LaneThread(const LaneThread&) = delete;
    LaneThread& operator=(const LaneThread&) = delete;

    /// Lets no turn begin any more.
    void end() noexcept;
    /// Ends it, and waits for the turn that is under way.
    void join() noexcept;
    /// Waits as join() does, but no longer than until `deadline`. Returns false if the thread still runs then.
    [[nodiscard]] bool join_until(std::chrono::steady_clock::time_point deadline) noexcept;

    /// A failure of the host's that ended the thread; null if there was none. After join().
    [[nodiscard]] std::exception_ptr failure() const noexcept { return failure_; }

  private:
    void body() noexcept;
    void watch_doorbells();

    Wiring wiring_;
    EventFd quit_;
    std::atomic<bool> quitting_ = false;
    EventLoop loop_;
    SourceWatch sources_;
    std::exception_ptr failure_;
    DeviceThread thread_; // last: it uses all of the above
};

} // namespace vmm
