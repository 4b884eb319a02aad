// Holds a whole machine: its vCPUs, and then its devices.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <string>

#include "vmm/machine/pause_gate.hpp"
#include "vmm/machine/virtio_devices.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {

/// Does what Machine::pause() and Machine::resume() do. It holds the vCPUs first, so that devices get no new requests.
/// Then all devices finish at the same time what they have with the host.
///
/// Threads: any, but open() and close() are for the thread of the run.
class MachinePause {
  public:
    /// Both arguments must outlive it.
    MachinePause(VirtioDevices& devices, const StopRequest& stop) : devices_(devices), stop_(stop) {}
    MachinePause(const MachinePause&) = delete;
    MachinePause& operator=(const MachinePause&) = delete;

    /// Returns when the machine is paused, when resume() was called meanwhile, or when the machine is about to end. If
    /// another call is under way, it waits for that first. More than 24 hours count as 24 hours. If it is called before
    /// open(), the machine begins paused. Throws PauseError if the machine is not quiet `within` that time; then the
    /// machine goes on, unless it was paused before. Throws UsageError after close(), or on the thread of a vCPU.
    void pause(std::chrono::milliseconds within);
    /// Lets the machine go on. Throws UsageError if somebody looks at the paused machine. Throws Error as
    /// VirtioDevices::reclaim_host().
    void resume();
    [[nodiscard]] bool is_paused() const noexcept { return paused_.load(); }

    /// Calls `look` while the machine is paused. Nobody can resume it meanwhile: resume() is refused, and pause()
    /// waits. Throws UsageError if the machine is not paused, has not begun or has ended. `tried` is for the message:
    /// "save the machine".
    template <typename Look>
    auto look_while_paused(const std::string& tried, Look look) {
        const Looking looking(*this, tried);
        return look();
    }

    /// The gate at which vCPUs wait.
    [[nodiscard]] PauseGate& gate() noexcept { return gate_; }

    /// Starts the devices' threads, which then wait. A thread whose host fails makes a request to `stop`. `sandbox`
    /// must outlive them. Throws Error.
    void start_devices(StopRequest& stop, const Sandbox& sandbox);
    /// Lets the devices begin, unless the machine is paused. It is called after start_devices().
    void let_devices_begin();
    /// Tells that from now on there are `vcpus` threads of vCPUs (PauseGate::open()).
    void open(std::size_t vcpus, PauseGate::KickAll kick_all);
    /// Ends pauses for good. When it returns, nobody is in pause() any more. A second call does nothing.
    void close();

  private:
    using Deadline = std::chrono::steady_clock::time_point;
    [[nodiscard]] bool is_ending() const noexcept { return closed_ || stop_.is_requested(); }
    class Looking {
      public:
        Looking(MachinePause& pause, const std::string& tried);
        ~Looking();
        Looking(const Looking&) = delete;
        Looking& operator=(const Looking&) = delete;

      private:
        MachinePause& pause_;
    };
    void hold_all(std::unique_lock<std::mutex>& hold, std::chrono::milliseconds within, Deadline deadline);

    VirtioDevices& devices_;
    const StopRequest& stop_;
    PauseGate gate_;
    std::mutex lock_; ///< guards all below, and the calls of pause and resume of the gate and the devices
    std::condition_variable changed_;
    bool have_devices_begun_ = false; ///< before that there is nobody to wait for
    bool has_begun_ = false;
    bool closed_ = false;
    bool is_under_way_ = false;       ///< somebody is in pause() or in look_while_paused()
    bool is_looked_at_ = false;       ///< somebody is in look_while_paused()
    bool is_resumed_ = false;         ///< resume() was called since somebody is there
    std::atomic<bool> paused_{false}; ///< written with the lock held
};

} // namespace vmm
