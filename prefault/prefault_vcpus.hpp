// The prefault vCPUs of a VM, and the scratch memslot that they run on.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>

#include "kvm/vcpu.hpp"
#include "kvm/vm.hpp"
#include "prefault/mapped_pages.hpp"
#include "prefault/options.hpp"
#include "prefault/x86/prefault_vcpu.hpp"
#include "prefault/x86/scratch.hpp"
#include "prefault/x86/second_level_host.hpp"

namespace vmm::prefault {

/// The prefault vCPUs of a VM, one for each worker, for as long as the VM lives. They fill chunks; SecondLevel decides
/// which, and when the second level is full.
///
/// Threads: one at a time, but for fill_chunk() and touch_chunk(), which each worker calls with its own index, and for
/// members that say otherwise. The guest may run meanwhile.
class PrefaultVcpus {
  public:
    /// What the owner of the VM leaves to the prefault.
    struct Setup {
        std::uint32_t scratch_slot; ///< the number of a memslot that is free
        Scratch::Layout scratch;    ///< where the scratch memslot lies
        std::function<kvm::Vcpu()>
            make_vcpu;                     ///< makes one more vCPU as PrefaultVcpu needs it; what it throws comes out
        unsigned most_vcpus = kMaxWorkers; ///< grow() makes no more, for each address space
        /// Whether there are prefault vCPUs in system management mode, too. The memslots of guest memory then exist in
        /// both address spaces before grow() is called.
        bool smm = false;
        /// Whether the guest is kept from writing to the scratch memslot if that is possible (Scratch::Protection).
        bool protect_scratch = false;
    };

    /// Makes no vCPU and no memslot yet. `vm` outlives it. Throws Error.
    PrefaultVcpus(kvm::Vm& vm, Setup setup);

    /// Adds the scratch memslot, if it is not there yet. This object must then live as long as a vCPU of the VM may
    /// run: if the memory of the memslot were gone, the guest could reach whatever takes its place. With `setup.smm`
    /// the memslots of guest memory exist in both address spaces. Throws Error.
    void add_scratch();

    /// Makes vCPUs until there are `count`, and as many in system management mode if the setup asks for them. Adds the
    /// scratch memslot as well.
    ///
    /// On shadow paging the first vCPUs are best made before the guest runs, because one of them runs to find out what
    /// the scratch memslot adds to KVM's counts. A guest may hold that up; `stop` ends it. Throws Error; the vCPUs that
    /// were made by then stay.
    void grow(unsigned count, const std::stop_token& stop = {});

    [[nodiscard]] unsigned count() const noexcept { return static_cast<unsigned>(vcpus_.size()); }
    /// The scratch memslot, whose page tables a guest may adopt. After grow().
    [[nodiscard]] const Scratch& scratch() const noexcept { return *scratch_; }
    [[nodiscard]] const SecondLevelHost& host() const noexcept { return host_; }

    /// Whether a guest runs from now on, which may lead a vCPU astray. Threads: any.
    void note_guest_runs(bool runs) noexcept { guest_runs_.store(runs); }
    [[nodiscard]] bool guest_runs() const noexcept { return guest_runs_.load(); }

    /// Gets ready for filling one of the second levels with memory that ends at `end`: makes the scratch memslot good
    /// again, has it map as much, touches it, and forgets earlier problems. Throws Error.
    void begin(kvm::AddressSpace address_space, GuestAddress end, const std::stop_token& stop);
    /// Makes the scratch memslot good again, wherever the guest may have written. To be called before each pass.
    void refresh_scratch() { scratch_->refresh(); }

    /// Has KVM map `chunk` by KVM_PRE_FAULT_MEMORY on vCPU `worker`. False ends the worker's part: a stop was
    /// requested, or the fill is given up. Throws Error if KVM refuses.
    bool pre_fault_chunk(unsigned worker, GuestRange chunk, std::uint64_t mapping_bytes, const std::stop_token& stop);
    /// Touches `chunk` with vCPU `worker`, once every `stride_bytes`. False as in pre_fault_chunk(), or if the vCPU
    /// failed: take_problem() says how. Throws Error if KVM refuses to run it.
    bool touch_chunk(kvm::AddressSpace address_space, unsigned worker, GuestRange chunk, std::uint64_t stride_bytes,
                     const std::stop_token& stop);

    /// What went wrong first since the last call, for people; empty if nothing did.
    [[nodiscard]] std::string take_problem();
    /// True if a vCPU did not come back in time since begin(). The fill is given up then: a guest must not hold it up
    /// once for every chunk.
    [[nodiscard]] bool are_held() const noexcept { return held_.load(); }
    /// True if KVM's counts of mappings include those of system management mode.
    [[nodiscard]] bool have_filled_smm() const noexcept { return smm_filled_; }

    /// How many second-level faults the vCPUs of an address space have taken in all (KVM's count).
    [[nodiscard]] std::uint64_t faults(kvm::AddressSpace address_space) const;
    /// How often the vCPUs have left the guest's side in all (KVM's count). Threads: any, but not beside grow().
    [[nodiscard]] std::uint64_t exits() const;

    /// What KVM has mapped of guest memory now: its counts less the pages of the scratch memslot. Threads: any.
    [[nodiscard]] MappedPages mapped_guest_memory() const;
    /// Maps the scratch memslot again, of which the host may have moved some pages: mapped_guest_memory() is exact
    /// then. Does nothing if a vCPU has failed before, and gives up after two seconds. Only while no vCPU of the guest
    /// runs, and after grow(). Throws Error.
    void map_scratch_again();

  private:
    [[nodiscard]] std::deque<PrefaultVcpu>& of(kvm::AddressSpace address_space) noexcept;
    [[nodiscard]] const std::deque<PrefaultVcpu>& of(kvm::AddressSpace address_space) const noexcept;
    [[nodiscard]] std::uint64_t used_scratch_pages() const noexcept;
    [[nodiscard]] std::uint64_t count_scratch_mappings(const std::stop_token& stop);
    [[nodiscard]] GuestRange touched_part_of_scratch() const noexcept;
    [[nodiscard]] TouchResult touch_scratch(PrefaultVcpu& vcpu, const std::stop_token& stop,
                                            const std::function<void()>& tick = {});
    /// Notes a failure. False unless `result` is kDone.
    bool heed(const TouchResult& result);

    kvm::Vm& vm_;
    Setup setup_;
    kvm::Stats vm_stats_;
    SecondLevelHost host_;
    std::optional<Scratch> scratch_;
    bool scratch_in_smm_ = false;
    std::deque<PrefaultVcpu> vcpus_;     ///< a deque: a vCPU's address never changes
    std::deque<PrefaultVcpu> smm_vcpus_; ///< in system management mode for ever: a root without users may be freed
    std::atomic<bool> guest_runs_{false};
    /// How many mappings of KVM's count are the scratch memslot's. All of them are small pages.
    std::atomic<std::uint64_t> scratch_mappings_{0};
    bool smm_filled_ = false;
    std::atomic<bool> held_{false};
    std::atomic<bool> has_failed_{false}; ///< a vCPU has failed, at any time: somebody leads them astray
    std::mutex problem_lock_;
    std::string problem_; ///< what went wrong first since take_problem()
};

} // namespace vmm::prefault
