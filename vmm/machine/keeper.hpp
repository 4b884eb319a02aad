// Keeps the second level full while the guest runs.
#pragma once

#include <chrono>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "prefault/host/kernel_counts.hpp"
#include "prefault/kept.hpp"
#include "prefault/loss_watch.hpp"
#include "prefault/options.hpp"
#include "vmm/config.hpp"
#include "vmm/machine/embedder.hpp"
#include "vmm/machine/fault_counters.hpp"
#include "vmm/machine/machine_second_level.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {

/// Throws Error if the second level of this guest cannot be watched on this host, and so cannot be kept full. Either
/// KVM does not count, or it counts the guest's own page tables. `adopts_page_tables` says whether the guest runs on
/// the page tables of the prefault.
void check_keeper(const MachineSecondLevel& second_level, bool adopts_page_tables);

/// A thread that reads KVM's counters at regular intervals. Workers of low priority fill again what LossWatch finds
/// missing. The thread itself has the process's priority, so that it notices a loss on a busy host, too. It ends when
/// the machine stops. Destruction waits for that, so a stop must have been requested before.
///
/// Threads: the one that made it.
class Keeper {
  public:
    /// All arguments must outlive it. Throws Error if the host gives no thread.
    Keeper(const Config& config, MachineSecondLevel& second_level, const FaultCounters& faults, const StopRequest& stop,
           Embedder& embedder);
    ~Keeper();
    Keeper(const Keeper&) = delete;
    Keeper& operator=(const Keeper&) = delete;

    /// Waits for the end. It may be called once.
    [[nodiscard]] prefault::KeptReport join();

  private:
    using Clock = std::chrono::steady_clock;

    /// Dirty logging at one moment.
    struct DirtyLog {
        unsigned switches = 0;
        bool is_on = false;
    };

    void body() noexcept;
    void keep(const std::stop_token& stop);
    void look(const std::stop_token& stop);
    void refill(const std::stop_token& stop);
    void note_kernel_counts();
    [[nodiscard]] prefault::KeptSample sample() const;
    [[nodiscard]] DirtyLog dirty_log() const noexcept;
    [[nodiscard]] std::vector<std::string> causes() const;
    [[nodiscard]] double seconds() const;
    void tell(prefault::KeptEvent event);

    const Config& config_;
    MachineSecondLevel& second_level_;
    const FaultCounters& faults_;
    const StopRequest& stop_;
    Embedder& embedder_;
    const Clock::time_point begin_ = Clock::now();
    prefault::Options options_;
    prefault::LossWatch watch_;
    prefault::KernelCounts kernel_;
    /// The counts at the last look, and the counts from which a loss is explained. The latter are those of the look
    /// before, and do not change during a spell.
    prefault::KernelCounts::Values last_counts_;
    prefault::KernelCounts::Values base_counts_;
    DirtyLog last_log_; ///< the same of dirty logging
    DirtyLog base_log_;
    double refill_cpu_seconds_ = 0;
    prefault::KeptReport report_;
    std::thread thread_; // last: it uses all of the above
};

} // namespace vmm
