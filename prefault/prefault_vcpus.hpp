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

/// The prefault vCPUs of a VM, one for each worker, as long as the VM lives. They fill chunks. SecondLevel decides
/// which chunks, and when the second level is full.
///
/// Threads: one at a time. Exceptions are fill_chunk() and touch_chunk(), which each worker calls with its own index,
/// and members that say otherwise. The guest may run meanwhile.
class PrefaultVcpus {
  public:
    /// What the owner of the VM provides for the prefault.
    struct Setup {
        std::uint32_t scratch_slot; ///< the number of a free memslot
        Scratch::Layout scratch;    ///< where the scratch memslot lies
        std::function<kvm::Vcpu()>
            make_vcpu;                     ///< makes one more vCPU as PrefaultVcpu needs it; what it throws comes out
        unsigned most_vcpus = kMaxWorkers; ///< the most vCPUs that grow() makes for each address space
        /// Whether there are prefault vCPUs in system management mode, too. If so, the memslots of guest memory must
        /// exist in both address spaces before grow() is called.
        bool smm = false;
        /// Whether to keep the guest from writing to the scratch memslot, if that is possible (Scratch::Protection).
        bool protect_scratch = false;
    };

    /// Makes no vCPU and no memslot yet. `vm` must outlive this object. Throws Error.
    PrefaultVcpus(kvm::Vm& vm, Setup setup);

    /// Adds the scratch memslot if it does not exist yet. From then on this object must live as long as a vCPU of the
    /// VM may run: if the memory of the memslot were gone, the guest could reach whatever takes its place. With
    /// `setup.smm` the memslots of guest memory must exist in both address spaces. Throws Error.
    void add_scratch();

    /// Adds the scratch memslot, and makes vCPUs until there are `count`. If the setup asks for it, makes as many in
    /// system management mode.
    ///
    /// On shadow paging the first vCPUs should be made before the guest runs, because one of them runs to count the
    /// mappings that the scratch memslot adds to KVM's counts. A running guest may delay that; `stop` ends it. Throws
    /// Error; the vCPUs made before that stay.
    void grow(unsigned count, const std::stop_token& stop = {});

    [[nodiscard]] unsigned count() const noexcept { return static_cast<unsigned>(vcpus_.size()); }
    /// The scratch memslot; a guest may adopt its page tables. Must be called after grow().
    [[nodiscard]] const Scratch& scratch() const noexcept { return *scratch_; }
    [[nodiscard]] const SecondLevelHost& host() const noexcept { return host_; }

    /// Notes whether a guest runs from now on. A running guest may lead a prefault vCPU astray. Threads: any.
    void note_guest_runs(bool runs) noexcept { guest_runs_.store(runs); }
    [[nodiscard]] bool guest_runs() const noexcept { return guest_runs_.load(); }

    /// Prepares to fill one of the second levels with memory that ends at `end`: restores the content of the scratch
    /// memslot, makes its tables map up to `end`, touches it, and forgets earlier problems. Throws Error.
    void begin(kvm::AddressSpace address_space, GuestAddress end, const std::stop_token& stop);
    /// Restores the content of the scratch memslot, wherever the guest may have written. Must be called before each
    /// pass.
    void refresh_scratch() { scratch_->refresh(); }

    /// Makes KVM map `chunk` by KVM_PRE_FAULT_MEMORY on vCPU `worker`. Returns false if the worker must end: a stop was
    /// requested, or the fill is given up. Throws Error if KVM refuses.
    bool pre_fault_chunk(unsigned worker, GuestRange chunk, std::uint64_t mapping_bytes, const std::stop_token& stop);
    /// Touches `chunk` with vCPU `worker`, once every `stride_bytes`. Returns false as pre_fault_chunk() does, or if
    /// the vCPU failed; take_problem() then says how. Throws Error if KVM refuses to run the vCPU.
    bool touch_chunk(kvm::AddressSpace address_space, unsigned worker, GuestRange chunk, std::uint64_t stride_bytes,
                     const std::stop_token& stop);

    /// The first problem since the last call, as text for people; empty if there was none.
    [[nodiscard]] std::string take_problem();
    /// True if a vCPU did not come back in time since begin(). The fill is then given up, so that a guest cannot delay
    /// it once for every chunk.
    [[nodiscard]] bool are_held() const noexcept { return held_.load(); }
    /// True if KVM's counts of mappings include those of system management mode.
    [[nodiscard]] bool have_filled_smm() const noexcept { return smm_filled_; }

    /// How many second-level faults the vCPUs of an address space have taken in total (KVM's count).
    [[nodiscard]] std::uint64_t faults(kvm::AddressSpace address_space) const;
    /// How often the vCPUs have exited in total (KVM's count). Threads: any, but not at the same time as grow().
    [[nodiscard]] std::uint64_t exits() const;

    /// What KVM has mapped of guest memory now: its counts minus the pages of the scratch memslot. Threads: any.
    [[nodiscard]] MappedPages mapped_guest_memory() const;
    /// Maps the scratch memslot again, because the host may have moved some of its pages. Afterwards
    /// mapped_guest_memory() is exact. Does nothing if a vCPU has failed before, and gives up after two seconds. Must
    /// be called after grow(), and only while no vCPU of the guest runs. Throws Error.
    void map_scratch_again();

  private:
    [[nodiscard]] std::deque<PrefaultVcpu>& of(kvm::AddressSpace address_space) noexcept;
    [[nodiscard]] const std::deque<PrefaultVcpu>& of(kvm::AddressSpace address_space) const noexcept;
    [[nodiscard]] std::uint64_t used_scratch_pages() const noexcept;
    [[nodiscard]] std::uint64_t count_scratch_mappings(const std::stop_token& stop);
    [[nodiscard]] GuestRange touched_part_of_scratch() const noexcept;
    [[nodiscard]] TouchResult touch_scratch(PrefaultVcpu& vcpu, const std::stop_token& stop,
                                            const std::function<void()>& tick = {});
    /// Records a failure. Returns false unless `result` is kDone.
    bool heed(const TouchResult& result);

    kvm::Vm& vm_;
    Setup setup_;
    kvm::Stats vm_stats_;
    SecondLevelHost host_;
    std::optional<Scratch> scratch_;
    bool scratch_in_smm_ = false;
    std::deque<PrefaultVcpu> vcpus_;     ///< a deque, so that a vCPU's address never changes
    std::deque<PrefaultVcpu> smm_vcpus_; ///< always in system management mode: KVM may free a root without users
    std::atomic<bool> guest_runs_{false};
    /// The number of mappings in KVM's counts that belong to the scratch memslot. All of them are small pages.
    std::atomic<std::uint64_t> scratch_mappings_{0};
    bool smm_filled_ = false;
    std::atomic<bool> held_{false};
    std::atomic<bool> has_failed_{false}; ///< a vCPU has failed at some time, because something leads the vCPUs astray
    std::mutex problem_lock_;
    std::string problem_; ///< the first problem since take_problem()
};

} // namespace vmm::prefault
