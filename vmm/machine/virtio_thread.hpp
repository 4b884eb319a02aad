// The thread a virtio device runs on.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <span>
#include <vector>

#include "devices/virtio/device.hpp"
#include "devices/virtio/driver_link.hpp"
#include "devices/virtio/negotiation.hpp"
#include "kvm/host/event_fd.hpp"
#include "vmm/machine/device_thread.hpp"
#include "vmm/machine/event_loop.hpp"
#include "vmm/machine/lane_thread.hpp"
#include "vmm/machine/source_watch.hpp"
#include "vmm/sandbox/sandbox.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {

/// Drives one device from construction until it is destroyed: it serves doorbells, what the driver negotiates, and the
/// device's own descriptors. Each lane of the device has another thread, which ends with this one. It shares nothing
/// with the threads of other devices. join() waits only for the turn that is under way, however much the guest asks
/// for. A reset waits for the turns of which the thread was told before.
///
/// In a pause the device first finishes resets that are under way, and then what it has with the host. Then the thread
/// watches nothing of the device until it is resumed. It can be ended in any state. A device that may not reach memory
/// (Negotiation::set_reach()) is paused in the same way, except that the driver's resets are still served.
///
/// Threads: the one that made it.
class VirtioThread {
  public:
    /// How the device is reached. Everything in it must outlive the thread.
    struct Wiring {
        devices::virtio::Device& device;
        devices::virtio::Negotiation& negotiation;
        devices::virtio::DriverLink& driver;
        std::deque<EventFd>& doorbells;             ///< by queue
        EventFd& work;                              ///< Negotiation::Hooks::work
        StopRequest& stop;                          ///< gets a request if the host fails
        const Sandbox& sandbox;                     ///< used while the thread begins
        std::atomic<std::uint64_t>* rung = nullptr; ///< counts the turns that doorbells began; null: nobody counts
        bool paused = false;                        ///< it begins paused: even an activation waits for resume()
        bool goes_on = false;                       ///< it goes on from a state, so the driver is interrupted once
        std::span<const unsigned> cpus = {};        ///< the CPUs on which its threads run; empty: any
    };

    /// Throws Error if the host cannot make a thread.
    explicit VirtioThread(const Wiring& wiring);
    /// Waits for the device's work with the host. No vCPU may run any more.
    ~VirtioThread();
    VirtioThread(const VirtioThread&) = delete;
    VirtioThread& operator=(const VirtioThread&) = delete;

    /// Prevents further turns. The work that the device has with the host is still waited for. Threads: any.
    void end() noexcept;
    /// Waits as destruction does.
    void join() noexcept;
    /// Waits as join() does, but no longer than until `deadline`. Returns false if the device still has work with the
    /// host then. In that case its thread goes on, so everything that it uses must stay where it is.
    [[nodiscard]] bool join_until(std::chrono::steady_clock::time_point deadline) noexcept;
    /// Asks for a pause. No vCPU may run until resume(). Threads: any.
    void pause() noexcept;
    /// Lets the device go on, also if it is not paused yet. Does nothing if no pause was asked for. Threads: any.
    void resume() noexcept;
    /// Returns true when the device is paused. Returns false if it is not paused by `deadline`, if it was resumed or
    /// has ended, or after end_waiting(). After it has returned true, the device's const functions may be called until
    /// resume(). Threads: any.
    [[nodiscard]] bool wait_until_paused(std::chrono::steady_clock::time_point deadline) noexcept;
    /// Ends the waiting in wait_until_paused(), now and in later calls. Threads: any.
    void end_waiting() noexcept;

    /// The failure of the host that ended the thread; null if there was none. It may be called after join().
    [[nodiscard]] std::exception_ptr failure() const noexcept;

  private:
    void body() noexcept;
    [[nodiscard]] static std::deque<LaneThread> begin_lanes(const Wiring& wiring);
    void serve_resets_first();
    void watch_sources();
    void serve_negotiation();
    void finish_resets();
    void follow_pause();
    void begin_pause();
    void finish_standing();
    void end_pause();
    void drain() noexcept;

    Wiring wiring_;
    bool interrupts_once_;
    EventFd quit_;
    std::atomic<bool> quitting_ = false; ///< no turn begins any more, unless it ends work with the host
    bool draining_ = false;
    EventLoop loop_;
    SourceWatch sources_;
    bool active_ = false;
    bool resetting_ = false;
    std::vector<std::uint16_t> resetting_queues_;
    bool stands_ = false;        ///< the device may not reach memory
    bool told_to_pause_ = false; ///< the device has been told; from now on it only finishes what it has begun
    bool stands_still_ = false;  ///< the device is paused
    bool work_left_ = false;     ///< negotiation must be served after the pause
    EventFd pause_asked_;
    std::mutex pause_lock_; ///< guards the three below
    std::condition_variable pause_changed_;
    bool pause_wanted_;
    bool is_paused_ = false; ///< written by the thread alone; it sets false before it lets the device go on
    bool nobody_waits_ = false;
    std::exception_ptr failure_;
    const devices::virtio::QueueSet own_queues_; ///< without those of the lanes
    std::deque<LaneThread> lanes_;
    DeviceThread thread_; // last: it uses all of the above
};

} // namespace vmm
