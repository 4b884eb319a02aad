// The dummies, and what they are told to do.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "kvm/host/guest_memory.hpp"
#include "kvm/vm.hpp"
#include "prefault/dummy_vcpu.hpp"
#include "prefault/host/crew.hpp"
#include "prefault/options.hpp"
#include "prefault/scratch.hpp"
#include "prefault/second_level.hpp"

namespace vmm::prefault {

/// A method, and why it is the one.
struct MethodChoice {
    Method method = Method::kNone;
    std::string reason;
};

/// What kAuto, or a wish, comes to on a host. A wish is granted, or it is Error.
[[nodiscard]] MethodChoice choose_method(Method wanted, const SecondLevelHost& host, bool has_pre_fault_memory);

/// What a fill came to.
struct FillResult {
    MappedPages mapped;         ///< of the guest's memory, all of it, when the fill ended
    unsigned top_up_passes = 0; ///< passes over every 4 KiB that found something to map
    Proof proof = Proof::kNone;
    std::string problem; ///< why there is no proof; empty if there is one, or if a stop was requested
};

/// The dummies and their scratch memslot, for as long as the VM lives. Memory may be filled again at any time.
///
/// Threads: one at a time, but for fill_chunk(); the guest may run meanwhile.
class SecondLevelFiller {
  public:
    struct Place {
        std::uint32_t memslot;   ///< a free slot number for the scratch memslot
        Scratch::Layout scratch; ///< where it lies
        unsigned first_vcpu_id;  ///< the lowest id of a dummy: above every real vCPU's
        SecondLevelHost host;    ///< what this host has
        bool smm = false;        ///< whether there are to be dummies in system management mode, too
        /// Whether the guest is kept from writing to the scratch memslot where that can be (Scratch::Protection).
        bool protect_scratch = false;
        /// Makes the vCPU of that id, with its CPUID set; empty: KVM_CREATE_VCPU and the CPUID given to the filler.
        std::function<kvm::Vcpu(unsigned id)> make_vcpu = {};
    };

    /// What one fill is about.
    struct Job {
        const GuestMemory& memory;
        std::span<const PlacedRange> ranges; ///< parts of `memory`
        bool all_memory;                     ///< whether they are all of it
        Method method;                       ///< kTouch or kIoctl
        /// Whether a guest runs; it may begin to meanwhile. What makes a dummy fail is its doing then, and no Error.
        const std::atomic<bool>& guest_runs;
        const Workforce& workforce; ///< of at most workers() workers
    };

    /// Adds the scratch memslot; no dummy yet. It must live as long as a vCPU of the VM may run, because the memslot
    /// does: were its memory gone, the guest could reach whatever takes its place. Throws Error.
    SecondLevelFiller(kvm::Vm& vm, const Place& place, std::span<const kvm_cpuid_entry2> cpuid);

    /// Makes dummies until there are `workers`, and as many in system management mode if the place asks for them; the
    /// memslots of guest memory then exist in both address spaces. On shadow paging the first are best made before the
    /// guest runs: what the scratch slot adds to KVM's counts is found out by looking at them. A guest may hold that
    /// up, `stop` ends it. Throws Error; those that were made by then stay.
    void grow(unsigned workers, const std::stop_token& stop = {});

    /// How often prefault vCPUs have left the guest's side, in all (KVM's count). Threads: any, but not beside grow().
    [[nodiscard]] std::uint64_t exits() const;

    [[nodiscard]] unsigned workers() const noexcept { return static_cast<unsigned>(dummies_.size()); }
    /// What the page tables of the dummies are; for a guest that adopts them.
    [[nodiscard]] const Scratch& scratch() const noexcept { return scratch_; }

    /// The three steps of filling: begin; each chunk once, from a worker's thread; verification, which tops up what is
    /// missing by touching. They return early if `stop` is requested. They throw Error: KVM refuses, or a dummy fails
    /// though no guest runs.
    void begin(const Job& job, const std::stop_token& stop);
    bool fill_chunk(const Job& job, unsigned worker, GuestRange chunk, const std::stop_token& stop);
    FillResult verify(const Job& job, const std::stop_token& stop);

    /// All three.
    FillResult fill(const Job& job, const std::stop_token& stop);

    /// As fill(), for the second level of system management mode, by touch. `mapped` is what it added.
    FillResult fill_smm(const Job& job, const std::stop_token& stop);

    /// Maps the scratch slot again, of whose pages the host may have moved some: mapped_guest_memory() is exact then.
    /// Does nothing where a prefault vCPU has failed before, and gives up after two seconds. While no vCPU of the guest
    /// runs, and after grow(). Throws Error.
    void map_scratch_again();

    /// What KVM has mapped of guest memory now. Threads: any.
    [[nodiscard]] MappedPages mapped_guest_memory() const;

  private:
    [[nodiscard]] std::uint64_t count_scratch_mappings(const std::stop_token& stop);
    [[nodiscard]] GuestRange touched_part_of_scratch() const noexcept;
    [[nodiscard]] DummyVcpu::Outcome touch_scratch(DummyVcpu& dummy, const std::stop_token& stop,
                                                   const std::function<void()>& tick = {});
    /// One pass over all of the job by touch. False if it was not finished.
    bool touch_all(std::deque<DummyVcpu>& dummies, const Job& job, Stage stage, std::uint64_t stride_bytes,
                   const std::stop_token& stop);
    /// Notes a dummy's failure. False unless it is done.
    bool heed(const DummyVcpu::Outcome& outcome);
    static void refuse_dummies_that_fail(const Job& job, const std::string& problem);
    std::string take_problem();

    kvm::Vm& vm_;
    kvm::Stats vm_stats_;
    SecondLevelHost host_;
    bool smm_;
    std::vector<kvm_cpuid_entry2> cpuid_;
    std::function<kvm::Vcpu(unsigned id)> make_vcpu_;
    unsigned next_vcpu_id_; ///< also that of a vCPU that could not be finished is used up
    Scratch scratch_;
    bool scratch_in_smm_ = false;
    std::deque<DummyVcpu> dummies_;     ///< a deque: a vCPU's address never changes
    std::deque<DummyVcpu> smm_dummies_; ///< in system management mode for ever: a root without users may be freed
    /// How many mappings of KVM's count are the scratch slot's, small pages all.
    std::atomic<std::uint64_t> scratch_mappings_{0};
    bool smm_filled_ = false;
    /// A dummy did not come back in time during the present fill, which is given up: a guest must not hold it up once
    /// for every chunk.
    std::atomic<bool> held_{false};
    /// A prefault vCPU has failed, at any time: somebody leads them astray.
    std::atomic<bool> has_failed_{false};
    std::mutex problem_lock_;
    std::string problem_; ///< what went wrong first in the present pass
};

} // namespace vmm::prefault
