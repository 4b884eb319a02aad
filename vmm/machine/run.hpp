// A machine's run: its threads, its event loop, and its end.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "kvm/host/timer_fd.hpp"
#include "vmm/config.hpp"
#include "vmm/machine/background_prefault.hpp"
#include "vmm/machine/embedder.hpp"
#include "vmm/machine/event_loop.hpp"
#include "vmm/machine/first_state.hpp"
#include "vmm/machine/hardware.hpp"
#include "vmm/machine/keeper.hpp"
#include "vmm/machine/machine_pause.hpp"
#include "vmm/machine/memory_grower.hpp"
#include "vmm/machine/vcpu_thread.hpp"
#include "vmm/report.hpp"
#include "vmm/statistics.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {

/// Runs hardware that has its first state, once. The threads exist only while execute() is under way: one for each
/// vCPU, those of the devices, and a prefault in the background and a keeper if there are. The event loop runs on the
/// caller's thread.
///
/// Threads: pause(), statistics(), has_begun() and check_reader() any; the rest the one that made it.
class Run {
  public:
    /// All arguments must outlive it. RunReport::seconds_to_first_instruction is counted from `started`.
    Run(const Config& config, Hardware& hardware, FirstState& first, StopRequest& stop, Embedder& embedder,
        RunReport& report, std::chrono::steady_clock::time_point started);
    Run(const Run&) = delete;
    Run& operator=(const Run&) = delete;

    /// Runs the guest until a stop is requested, and completes the report. Throws UsageError if it is called a second
    /// time. Throws Error if the host fails, and what a function of the embedding program threw.
    ExitReason execute();
    [[nodiscard]] bool has_begun() const noexcept { return has_begun_.load(); }

    /// The object that does what Machine::pause() and Machine::resume() do.
    [[nodiscard]] MachinePause& pause() noexcept { return pause_; }

    [[nodiscard]] Statistics statistics() const;

    /// Throws UsageError unless the calling thread may read the report and the crash now.
    void check_reader() const;
    /// Why the guest crashed, and its registers, as lines; empty if it did not crash.
    [[nodiscard]] const std::string& crash() const noexcept { return crash_; }

  private:
    void run_threads(std::deque<VcpuThread>& threads);
    [[nodiscard]] prefault::CpuList cpus_of(unsigned vcpu) const;
    [[nodiscard]] prefault::Options background_options();
    void watch_second_level(EventLoop& loop, TimerFd& timer);
    void watch_arrival(EventLoop& loop, TimerFd& timer);
    void watch_terminal_size(EventLoop& loop);
    void note_full();
    void note_background(BackgroundPrefault::Result result, const std::deque<VcpuThread>& threads);
    void flush_output() noexcept;
    void note_output(const char* device, const CharacterConsole& output);
    void note_end(const std::deque<VcpuThread>& threads);
    void log_end();
    [[nodiscard]] std::optional<std::uint64_t> measure_resident_overhead() const;

    const Config& config_;
    Hardware& hardware_;
    FirstState& first_;
    StopRequest& stop_;
    Embedder& embedder_;
    RunReport& report_;
    std::chrono::steady_clock::time_point started_;
    std::string crash_;
    MachinePause pause_;
    const Sandbox sandbox_;
    std::atomic<bool> has_begun_{false};
    std::atomic<RunState> state_{RunState::kReady};
    std::atomic<std::thread::id> runner_;       ///< the thread that is in execute()
    mutable std::mutex counting_;               ///< held while the counters are set to zero, and while they are read
    std::vector<std::uint64_t> watched_faults_; ///< the counts of the last sample
    std::optional<std::uint64_t> faults_in_first_second_; ///< of a guest that arrived
    std::optional<std::uint64_t> faults_in_ten_seconds_;
};

} // namespace vmm
