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

/// What Machine::pause() and Machine::resume() do. The vCPUs are held first, so that nothing more is asked of the
/// devices. Then all devices end at once what they have with the host.
///
/// Threads: any, but for open() and close(), which are for the thread of the run.
class MachinePause {
  public:
    /// Both outlive it.
    MachinePause(VirtioDevices& devices, const StopRequest& stop) : devices_(devices), stop_(stop) {}
    MachinePause(const MachinePause&) = delete;
    MachinePause& operator=(const MachinePause&) = delete;

    /// Returns when the machine is paused, resume() was called meanwhile, or the machine is about to end. A call waits
    /// for another one that is under way. It counts 24 hours for more. If it is called before open(), the machine
    /// begins paused. Throws PauseError if the machine is not quiet `within` that time: then it goes on, unless it was
    /// paused before. Throws UsageError after close(), or in the thread of a vCPU.
    void pause(std::chrono::milliseconds within);
    /// Throws UsageError: somebody looks at the paused machine. Throws Error: VirtioDevices::reclaim_host().
    void resume();
    [[nodiscard]] bool is_paused() const noexcept { return paused_.load(); }

    /// Calls `look` while the machine is paused, and nobody resumes it meanwhile: resume() is refused, and pause()
    /// waits. Throws UsageError: it is not paused, has not begun or has ended. `tried` is for the message: "save the
    /// machine".
    template <typename Look>
    auto look_while_paused(const std::string& tried, Look look) {
        const Looking looking(*this, tried);
        return look();
    }

    /// Where vCPUs wait.
    [[nodiscard]] PauseGate& gate() noexcept { return gate_; }

    /// Starts the devices' threads, which call for an end by `stop`. They wait. `sandbox` outlives them. Throws Error.
    void start_devices(StopRequest& stop, const Sandbox& sandbox);
    /// Lets them begin, unless the machine is paused. After start_devices().
    void let_devices_begin();
    /// From now on there are `vcpus` threads of vCPUs: PauseGate::open().
    void open(std::size_t vcpus, PauseGate::KickAll kick_all);
    /// Ends pauses for good. Nobody is in pause() any more when it returns. A second call does nothing.
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
    std::mutex lock_; ///< guards all below, and the calls of pause and resume of gate and devices
    std::condition_variable changed_;
    bool have_devices_begun_ = false; ///< before that there is nobody to wait for
    bool has_begun_ = false;
    bool closed_ = false;
    bool is_under_way_ = false;       ///< somebody is in pause() or in look_while_paused()
    bool is_looked_at_ = false;       ///< the latter
    bool is_resumed_ = false;         ///< resume() was called since then
    std::atomic<bool> paused_{false}; ///< written with the lock held
};

} // namespace vmm
