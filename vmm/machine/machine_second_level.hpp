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
/// Threads: any; one call is served at a time, and the others wait.
class MachineSecondLevel {
  public:
    /// All arguments must outlive it. `cpuid` is that of the guest's vCPUs. If the configuration wants a full second
    /// level before the guest runs, this adds the memslots that the fill needs. The VM should have no interrupt
    /// controllers yet (prefault::SecondLevel::add_scratch()). Throws Error.
    MachineSecondLevel(kvm::Vm& vm, GuestRam& ram, const Config& config, std::vector<kvm_cpuid_entry2> cpuid);

    /// Makes the prefault vCPUs now. Throws Error.
    void prepare(const std::stop_token& stop = {});
    /// The root of the prefault vCPUs' page tables, for a guest that adopts them. It is there after prepare().
    [[nodiscard]] GuestAddress page_tables() const noexcept { return second_level_.page_tables(); }

    /// The kind of second level that the host has.
    [[nodiscard]] const prefault::SecondLevelHost& host() const noexcept { return second_level_.host(); }

    /// Tells that the guest runs. From now on, if a prefault vCPU fails, the guest may have led it astray. It never
    /// waits for another call.
    void note_guest_runs() noexcept { second_level_.note_guest_runs(); }

    /// Fills as SecondLevel::fill(), with at most as many workers as the configuration has. Throws Error.
    prefault::Report fill(const prefault::Options& options, const std::stop_token& stop);

    /// Fills as fill(). If dirty logging is on, it returns nothing, and touches nothing. Throws Error.
    std::optional<prefault::Report> refill(const prefault::Options& options, const std::stop_token& stop);

    /// Prepares fill_piece(): makes a prefault vCPU for the method of the configuration. Throws Error.
    void begin_pieces(const std::stop_token& stop);
    /// Maps `piece`, which must be a part of one region and whose pages must exist on the host. It never waits for
    /// another call. It returns false and does nothing while another call is under way, while dirty pages are logged,
    /// and before begin_pieces(). Throws Error.
    bool fill_piece(GuestRange piece, const std::stop_token& stop);

    /// How many bytes KVM maps if nothing is missing, as the fills until now have counted. It is 0 if no fill of all
    /// memory was made, or if it was stopped. A fill that was not proven complete counts as a complete one. It never
    /// waits for another call.
    [[nodiscard]] std::uint64_t full_bytes() const noexcept { return full_bytes_.load(); }

    /// Adds a memslot and populates it. Throws Error; then nothing has been added, unless only populating failed.
    prefault::Report add_memory(GuestRange range, const std::stop_token& stop);

    /// Switches dirty logging of all memory on or off. Throws Error.
    void log_dirty_pages(bool on);
    /// Whether dirty logging is on, and how often it was switched. They never wait for another call.
    [[nodiscard]] bool logs_dirty_pages() const noexcept { return logs_dirty_pages_.load(); }
    [[nodiscard]] unsigned dirty_log_switches() const noexcept { return dirty_log_switches_.load(); }

    /// While it lives, others cannot fill, add or log: their calls wait for its end. Memory has the same regions
    /// meanwhile. Threads: one.
    class Hold {
      public:
        /// Waits for a call that is under way.
        explicit Hold(MachineSecondLevel& level) : level_(level), hold_(level.lock_) {}
        /// Does not wait. If another call is under way, has() returns false.
        Hold(MachineSecondLevel& level, std::try_to_lock_t how) : level_(level), hold_(level.lock_, how) {}
        [[nodiscard]] bool has() const noexcept { return hold_.owns_lock(); }
        Hold(const Hold&) = delete;
        Hold& operator=(const Hold&) = delete;

      private:
        friend MachineSecondLevel;
        MachineSecondLevel& level_;
        std::unique_lock<std::mutex> hold_;
    };

    /// Makes memory at `range` and populates both sides of it as the machine's memory is. `range` is whole blocks of
    /// the memory that the guest can be given (GuestRam::pluggable()). If its second level is not full afterwards, the
    /// report says why, and the keeper fills it. Throws Error, and StoppedError if a stop is requested; then the memory
    /// is not there.
    prefault::Report plug(const Hold& hold, GuestRange range, const std::stop_token& stop);
    /// Gives such memory back to the host. Throws Error; then the memory is there and empty.
    void unplug(const Hold& hold, GuestRange range, const std::stop_token& stop);

    /// Logs the dirty pages of all memory while it lives. It logs the writes of vCPUs and of this process. Threads:
    /// one.
    class DirtyLog {
      public:
        /// `hold` must outlive it. No device may have work in flight (MachinePause), and nobody else may write to guest
        /// memory meanwhile. Throws UsageError if dirty pages are logged already. Throws Error.
        explicit DirtyLog(Hold& hold);
        ~DirtyLog();
        DirtyLog(const DirtyLog&) = delete;
        DirtyLog& operator=(const DirtyLog&) = delete;

        /// Begins to watch the pages of `range`, which is a part of a region, unless they are watched already. Writes
        /// of vCPUs are logged only from then on; until then all of these pages count as written. This spreads the cost
        /// of protecting pages over time. Throws Error. Threads: any.
        void watch(GuestRange range);

        /// Returns the pages that vCPUs have written since the log began, or since they were read last. Throws Error.
        [[nodiscard]] PageBits take_of_vcpus();
        /// Returns the same, and the pages that this process has written since then. No device may have work in flight.
        /// Throws Error.
        [[nodiscard]] PageBits take_all();
        /// Returns the same as take_all(), and ends the logging of writes of this process. It may be called once.
        /// Throws Error.
        [[nodiscard]] PageBits take_last();

      private:
        static constexpr std::uint64_t kWatchedAtOnce = 2 * kMiB;
        void watch_piece(std::uint32_t slot, const MemoryRegion& region, std::uint64_t piece);

        MachineSecondLevel& level_;
        bool by_piece_ = false;                               ///< if false, all memory is watched from the beginning
        std::vector<std::vector<std::atomic<bool>>> watched_; ///< pieces of each region
    };

    /// Returns SecondLevel::mapped(). Never waits for another call.
    [[nodiscard]] prefault::MappedPages mapped() const { return second_level_.mapped(); }
    /// Returns SecondLevel::mapped_at_rest(). Throws Error.
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
    bool full_bytes_is_proven_ = false; ///< a complete fill has counted this number
    bool fills_pieces_ = false;
    std::atomic<bool> logs_dirty_pages_{false};
    std::atomic<unsigned> dirty_log_switches_{0};
    std::unique_ptr<WriteLog> own_writes_; ///< a device may still mark pages in it after the log has ended by a failure
    prefault::SecondLevel second_level_;
};

} // namespace vmm
