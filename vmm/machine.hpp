// One virtual machine, from configuration to exit.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "kvm/host/export.hpp"
#include "vmm/config.hpp"
#include "vmm/report.hpp"
#include "vmm/statistics.hpp"
#include "vmm/stop_request.hpp"

VMM_API_BEGIN
namespace vmm {

/// A guest: its memory, vCPUs and devices. Construction loads the kernel and creates everything, but populates nothing
/// and runs nothing; what cannot work is refused then, and nothing is left behind. Destruction gives everything back.
///
///     Machine machine(config);
///     machine.prefault();          // as config.prefault says; the report can be asked for later
///     ExitReason reason = machine.run();
///
/// Threads: request_stop() and is_stop_requested() may be called from any thread and from a signal handler, also while
/// prefault() or run() is under way. Everything else may be called from any thread: prefault(), add_memory() and
/// log_dirty_pages() are served one at a time; pause(), resume(), statistics(), memory() and set_balloon() at once.
/// While run() is under way, report() and crash_description() are for the thread that is in it (a sink, say); others
/// get UsageError. Nothing may be under way when the machine is destroyed.
///
/// It installs no signal handler, ends no process, writes nowhere but to the descriptors and functions it was given,
/// and knows of no other machine: any number may live in a process, on any threads. To vCPUs it sends the signal
/// SIGRTMIN, which its own threads block and which is delivered nowhere.
class Machine {
  public:
    /// Either there is a machine, or Error, or what a DeviceConfig::make or the log threw; nothing is left behind then.
    /// `started` is when the clock of RunReport::seconds_to_first_instruction begins. Throws Error.
    explicit Machine(Config config, std::chrono::steady_clock::time_point started = std::chrono::steady_clock::now());
    ~Machine();
    Machine(const Machine&) = delete;
    Machine& operator=(const Machine&) = delete;

    /// Populates what `config.prefault` asks for, or `options`. At any time and again, also while the guest runs: what
    /// is there already is found there, and what was lost (after dirty logging, say) is made good. Content never
    /// changes. Ends early if a stop is requested. Throws Error: `options` ask for what cannot be, or the host fails.
    prefault::Report prefault();
    prefault::Report prefault(const prefault::Options& options);

    /// Adds guest-physical memory at `range` and populates it, both sides. `range` must begin at a multiple of
    /// GuestMemory::region_alignment(), be whole pages, and lie where there is neither RAM nor a device, at most 512
    /// GiB above the RAM the machine was made with. At any time, also while the guest runs, which is not told. The
    /// memory stays as long as the machine. Throws Error; where it is populating that failed, the memory is there all
    /// the same.
    prefault::Report add_memory(GuestRange range);

    /// Switches KVM's dirty logging of all memory on or off. On splits large second-level mappings and off drops the
    /// small ones: prefault() makes both good. At any time. Throws Error.
    void log_dirty_pages(bool on);

    /// Asks the guest of a machine with a balloon for `bytes` of its memory, instead of what Config::balloon says; it
    /// gives what it can do without. From any thread. Throws Error: the machine has no balloon, or the size is none
    /// for it.
    void set_balloon(std::uint64_t bytes);

    /// Runs the guest until it ends or is stopped, on this thread and one for each vCPU. Throws Error where the host
    /// fails; what a device, a sink or another function of the configuration threw; and UsageError the second time.
    ExitReason run();

    /// Holds the guest: when it returns, no vCPU runs, nor will one until resume(); or the machine is about to end.
    /// Before run(), the guest will not begin. Devices that have threads of their own, timers of KVM's and a prefault
    /// in the background go on. Twice is as good as once. Throws UsageError: the machine has ended, or a device asks
    /// for it in its own access.
    void pause();
    /// Lets it go on. Nothing happens if it is not paused.
    void resume();

    /// What it is doing. Also while it runs, and afterwards. Throws Error where KVM's counters cannot be read.
    [[nodiscard]] Statistics statistics() const;

    /// The guest's memory, as long as the machine lives. Its content is the guest's while it runs.
    [[nodiscard]] const GuestMemory& memory() const noexcept;

    /// Ends prefault() and run() soon; the first request counts.
    void request_stop(ExitReason reason = ExitReason::kStopped) noexcept;

    [[nodiscard]] bool is_stop_requested() const noexcept;

    /// The device tree in the guest's memory, as it was put there; empty if it has none. As long as the machine.
    [[nodiscard]] std::span<const std::byte> device_tree() const noexcept;

    /// What happened until now. After run() it is whole. Not while a prefault is under way. Its `prefault` is of the
    /// last call before run(), or of what run() did in the background.
    [[nodiscard]] const RunReport& report() const;
    /// Where the guest crashed: the reason and the registers, as lines. Empty if it did not.
    [[nodiscard]] const std::string& crash_description() const;

  private:
    struct __attribute__((visibility("hidden"))) Parts;
    std::unique_ptr<Parts> parts_;
};

} // namespace vmm
VMM_API_END
