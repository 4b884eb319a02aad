// Pre-population of a machine's memory, before its guest runs and at any time after.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <stop_token>
#include <vector>

#include "kvm/uapi.hpp"
#include "kvm/vm.hpp"
#include "prefault/prefault.hpp"
#include "vmm/config.hpp"
#include "vmm/machine/guest_ram.hpp"

namespace vmm {

/// Owns the prefault vCPUs of a machine. They are made when they are first needed.
///
/// Threads: any; one call at a time is served, the others wait.
class Prefaulter {
  public:
    /// What the host offers for it.
    struct Host {
        prefault::SecondLevelHost second_level;
        bool pre_fault_memory = false; ///< KVM_CAP_PRE_FAULT_MEMORY
        bool one_gib_pages = false;
        unsigned address_bits = 0; ///< of a guest
    };

    /// All of these outlive it. `cpuid` is the real vCPUs'.
    Prefaulter(kvm::Vm& vm, GuestRam& ram, const Config& config, const Host& host, std::vector<kvm_cpuid_entry2> cpuid);

    /// Makes the dummies now. Throws Error.
    void prepare(const std::stop_token& stop = {});
    /// Where the dummies' page tables begin, for a guest that adopts them; after prepare().
    [[nodiscard]] GuestAddress page_tables() const noexcept { return filler_->scratch().page_tables(); }

    /// From now on, what makes a dummy fail is the guest's doing. Waits for nobody.
    void note_guest_runs() noexcept { guest_runs_.store(true); }

    /// Throws Error.
    prefault::Report run(const prefault::Options& options, const std::stop_token& stop);

    /// Adds a memslot and populates it. On Error nothing has been added, unless populating it failed. Throws Error.
    prefault::Report add_memory(GuestRange range, const std::stop_token& stop);

    /// Switches dirty logging of all memory on or off. Throws Error.
    void log_dirty_pages(bool on);

    /// What KVM has mapped of guest memory now, short by the few pages of the scratch slot that may have been moved
    /// since the last prefault. Never waits for another call.
    [[nodiscard]] prefault::MappedPages mapped() const;
    /// The same, exactly; for when no vCPU of the guest runs. Throws Error.
    [[nodiscard]] prefault::MappedPages mapped_at_rest();

  private:
    void add_filler();
    void add_memslots_of_smm();
    void check_new_range(GuestRange range) const;
    prefault::Report run_locked(const prefault::Options& options, const std::stop_token& stop);

    kvm::Vm& vm_;
    GuestRam& ram_;
    const Config& config_;
    Host host_;
    std::vector<kvm_cpuid_entry2> cpuid_;
    kvm::Stats vm_stats_;
    mutable std::mutex lock_;
    std::atomic<bool> guest_runs_{false};
    std::size_t smm_memslots_ = 0; ///< how many regions are memslots of system management mode, too
    std::optional<prefault::SecondLevelFiller> filler_;
    std::atomic<const prefault::SecondLevelFiller*> ready_filler_{nullptr}; ///< the same, once it is there
};

} // namespace vmm
