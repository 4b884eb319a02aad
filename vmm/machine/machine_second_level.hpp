// The second level of a machine: its memslots, filled before the guest runs and at any time after.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <vector>

#include "kvm/host/write_log.hpp"
#include "kvm/uapi.hpp"
#include "kvm/vm.hpp"
#include "prefault/second_level.hpp"
#include "vmm/config.hpp"
#include "vmm/machine/guest_ram.hpp"
#include "vmm/state/page_bits.hpp"

namespace vmm {

/// The second level of a machine. Its prefault vCPUs are made when they are first needed.
///
/// Threads: any; one call at a time is served, the others wait.
class MachineSecondLevel {
  public:
    /// All of these outlive it. `cpuid` is the guest's vCPUs'. If the configuration wants a full second level before
    /// the guest runs, this adds the memslots that the fill needs. The VM should have no interrupt controllers yet
    /// (prefault::SecondLevel::add_scratch()). Throws Error.
    MachineSecondLevel(kvm::Vm& vm, GuestRam& ram, const Config& config, std::vector<kvm_cpuid_entry2> cpuid);

    /// Makes the prefault vCPUs now. Throws Error.
    void prepare(const std::stop_token& stop = {});
    /// Where the prefault vCPUs' page tables begin, for a guest that adopts them; after prepare().
    [[nodiscard]] GuestAddress page_tables() const noexcept { return second_level_.page_tables(); }

    /// The kind of second level that the host has.
    [[nodiscard]] const prefault::SecondLevelHost& host() const noexcept { return second_level_.host(); }

    /// From now on the guest may have led astray a prefault vCPU that fails. Waits for nobody.
    void note_guest_runs() noexcept { second_level_.note_guest_runs(); }

    /// As SecondLevel::fill(), by at most as many workers as the configuration has. Throws Error.
    prefault::Report fill(const prefault::Options& options, const std::stop_token& stop);

    /// As fill(), unless dirty logging is on: then it returns nothing, and touches nothing. Throws Error.
    std::optional<prefault::Report> refill(const prefault::Options& options, const std::stop_token& stop);

    /// Gets ready for fill_piece(): makes a prefault vCPU, by the method of the configuration. Throws Error.
    void begin_pieces(const std::stop_token& stop);
    /// Maps `piece`, which is a part of one region and whose pages exist on the host. This never waits for another
    /// call. It does nothing and returns false while another call is under way, while dirty pages are logged, and
    /// before begin_pieces(). Throws Error.
    bool fill_piece(GuestRange piece, const std::stop_token& stop);

    /// How much KVM maps if nothing is missing, by the fills until now; 0 if there was none of all memory, or if it was
    /// stopped. A fill that was not proven complete counts as if it had been. Never waits for another call.
    [[nodiscard]] std::uint64_t full_bytes() const noexcept { return full_bytes_.load(); }

    /// Adds a memslot and populates it. Throws Error; then nothing has been added, unless populating it failed.
    prefault::Report add_memory(GuestRange range, const std::stop_token& stop);

    /// Switches dirty logging of all memory on or off. Throws Error.
    void log_dirty_pages(bool on);
    /// Whether dirty logging is on, and how often it was switched. Never wait for another call.
    [[nodiscard]] bool logs_dirty_pages() const noexcept { return logs_dirty_pages_.load(); }
    [[nodiscard]] unsigned dirty_log_switches() const noexcept { return dirty_log_switches_.load(); }

    /// As long as it lives, nothing is filled, added or logged by others: their calls wait for its end. Memory has the
    /// same regions meanwhile. Threads: one.
    class Hold {
      public:
        /// Waits for a call that is under way.
        explicit Hold(MachineSecondLevel& level) : level_(level), hold_(level.lock_) {}
        /// Does not wait: has() tells whether there is none.
        Hold(MachineSecondLevel& level, std::try_to_lock_t how) : level_(level), hold_(level.lock_, how) {}
        [[nodiscard]] bool has() const noexcept { return hold_.owns_lock(); }
        Hold(const Hold&) = delete;
        Hold& operator=(const Hold&) = delete;

      private:
        friend MachineSecondLevel;
        MachineSecondLevel& level_;
        std::unique_lock<std::mutex> hold_;
    };

    /// Makes memory at `range`, whole blocks of what the guest can be given (GuestRam::pluggable()), and populates it
    /// as the machine's memory is, on both sides. Throws Error, and StoppedError if a stop is requested: it is not
    /// there then. If its second level is not full, the report says why, and the keeper makes that good.
    prefault::Report plug(const Hold& hold, GuestRange range, const std::stop_token& stop);
    /// Gives such memory back to the host. Throws Error: it is there then, and empty.
    void unplug(const Hold& hold, GuestRange range, const std::stop_token& stop);

    /// Logs the dirty pages of all memory as long as it lives: those that vCPUs write, and those that this process
    /// writes. Threads: one.
    class DirtyLog {
      public:
        /// `hold` outlives it. No device has work in flight (MachinePause), and nobody else writes to guest memory
        /// meanwhile. Throws UsageError: dirty pages are logged already. Throws Error.
        explicit DirtyLog(Hold& hold);
        ~DirtyLog();
        DirtyLog(const DirtyLog&) = delete;
        DirtyLog& operator=(const DirtyLog&) = delete;

        /// Has the pages of `range`, which is a part of a region, watched from now on, unless they are: what vCPUs
        /// write there is logged only from then on. Until then all of them count as written. So the cost of protecting
        /// pages is spread. Throws Error. Threads: any.
        void watch(GuestRange range);

        /// The pages that vCPUs have written since the log began, or since they were read last. Throws Error.
        [[nodiscard]] PageBits take_of_vcpus();
        /// The same, and those that this process has written since then. No device has work in flight. Throws Error.
        [[nodiscard]] PageBits take_all();
        /// The same; what this process writes is logged no more from now on. Once. Throws Error.
        [[nodiscard]] PageBits take_last();

      private:
        static constexpr std::uint64_t kWatchedAtOnce = 2 * kMiB;
        void watch_piece(std::uint32_t slot, const MemoryRegion& region, std::uint64_t piece);

        MachineSecondLevel& level_;
        bool by_piece_ = false;                               ///< otherwise all is watched from the beginning
        std::vector<std::vector<std::atomic<bool>>> watched_; ///< pieces of each region
    };

    /// As SecondLevel::mapped(). Never waits for another call.
    [[nodiscard]] prefault::MappedPages mapped() const { return second_level_.mapped(); }
    /// As SecondLevel::mapped_at_rest(). Throws Error.
    [[nodiscard]] prefault::MappedPages mapped_at_rest();

  private:
    [[nodiscard]] prefault::PrefaultVcpus::Setup setup();
    [[nodiscard]] kvm::Vcpu make_prefault_vcpu();
    void add_memslots_of_smm();
    void check_new_range(GuestRange range) const;
    [[nodiscard]] prefault::Options options_for(std::vector<GuestRange> ranges) const;
    prefault::Report fill_locked(const prefault::Options& options, const std::stop_token& stop);
    void log_locked(bool on);
    void note_filled(const prefault::Report& report, bool smm, const std::stop_token& stop) noexcept;

    kvm::Vm& vm_;
    GuestRam& ram_;
    const Config& config_;
    std::vector<kvm_cpuid_entry2> cpuid_;
    mutable std::mutex lock_;
    unsigned next_vcpu_id_;        ///< the id of a vCPU that could not be finished is used up
    std::size_t smm_memslots_ = 0; ///< how many regions are memslots of system management mode, too
    std::atomic<std::uint64_t> full_bytes_{0};
    bool full_bytes_is_proven_ = false; ///< a fill that was complete has counted as much
    bool fills_pieces_ = false;
    std::atomic<bool> logs_dirty_pages_{false};
    std::atomic<unsigned> dirty_log_switches_{0};
    std::unique_ptr<WriteLog> own_writes_; ///< a device may still mark pages in it after the log has ended by a failure
    prefault::SecondLevel second_level_;
};

} // namespace vmm
