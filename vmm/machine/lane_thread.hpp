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

/// Serves the doorbells and descriptors of a lane from construction until it is destroyed. The device's own thread
/// (VirtioThread) does everything else.
///
/// Threads: the one that made it, but end() may be called on any.
class LaneThread {
  public:
    /// How the lane is reached. Everything in it must outlive the thread.
    struct Wiring {
        devices::virtio::Lane& lane;
        std::string name; ///< at most 15 bytes
        ThreadKind kind{};
        std::deque<EventFd>& doorbells; ///< of the whole device, by queue
        StopRequest& stop;              ///< gets a request if the host fails
        const Sandbox& sandbox;         ///< used while the thread begins
        std::atomic<std::uint64_t>* rung = nullptr;
        std::span<const unsigned> cpus = {}; ///< the CPUs on which it runs; empty: any
    };

    /// Throws Error if the host cannot make a thread.
    explicit LaneThread(Wiring wiring);
    ~LaneThread() { join(); }
    LaneThread(const LaneThread&) = delete;
    LaneThread& operator=(const LaneThread&) = delete;

    /// Prevents further turns.
    void end() noexcept;
    /// Ends the thread, and waits for the turn that is under way.
    void join() noexcept;
    /// Waits as join() does, but no longer than until `deadline`. Returns false if the thread still runs then.
    [[nodiscard]] bool join_until(std::chrono::steady_clock::time_point deadline) noexcept;

    /// The failure of the host that ended the thread; null if there was none. It may be called after join().
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
