// Pre-population of one VM as a whole: host side, pin, second level, proof.
#pragma once

#include <stop_token>

#include "kvm/host/guest_memory.hpp"
#include "kvm/vm.hpp"
#include "prefault/host/pin.hpp"
#include "prefault/host/placement.hpp"
#include "prefault/mapped_pages.hpp"
#include "prefault/options.hpp"
#include "prefault/prefault_vcpus.hpp"
#include "prefault/report.hpp"

namespace vmm::prefault {

/// The second level of one VM, and everything that is needed to fill it. For a VM with interrupt controllers in the
/// kernel, 1 GiB of memory in memslot 0 and one vCPU it is used like this:
///
///     const Placement placement{{{{GuestAddress{0}, kGiB}, std::nullopt}}, {}};
///     PinnedMemory pins(Pin::kMlock);
///     const auto make_vcpu = [&, id = 1U]() mutable {
///         kvm::Vcpu vcpu(vm, id++);
///         vcpu.set_cpuid(cpuid); // The same as the guest's vCPU has.
///         return vcpu;
///     };
///     SecondLevel second_level(vm, memory, placement, pins,
///                              {.scratch_slot = 1,
///                               .scratch = {GuestAddress{0xe0000000}, 4 * kGiB, 4 * kGiB, false},
///                               .make_vcpu = make_vcpu});
///     const Report report = second_level.fill({.scope = Scope::kAll, .workers = 4});
///     if (!report.complete) {
///         std::cerr << report.problem << "\n";
///     }
///     second_level.note_guest_runs(); // The guest may start: it takes no second-level fault.
///
/// Threads: one at a time, except for members that say otherwise. The guest may run meanwhile.
class SecondLevel {
  public:
    /// `memory` holds the memory of the VM's memslots, and `placement` says where all of it lies; both may grow between
    /// two calls. All arguments must outlive this object, and this object must outlive the last run of a vCPU of the
    /// VM. Throws Error.
    SecondLevel(kvm::Vm& vm, const GuestMemory& memory, const Placement& placement, PinnedMemory& pins,
                PrefaultVcpus::Setup setup);
    SecondLevel(const SecondLevel&) = delete;
    SecondLevel& operator=(const SecondLevel&) = delete;

    /// Populates what `options` ask for: host side, pin, second level, verification. It may be called again at any
    /// time: it keeps what exists, and content never changes. If `stop` is requested, the report says what was done,
    /// and `complete` is false. Throws Error if `options` ask for something impossible, or the host fails; also throws
    /// what the progress sink throws.
    Report fill(const Options& options, const std::stop_token& stop = {});

    /// Prepares for fill_piece() by the given `method` of the options. It need not be called again after a fill().
    /// Throws Error.
    void begin_pieces(Method method, const std::stop_token& stop = {});
    /// Maps `piece`, a part of one region whose pages exist on the host, so that it serves a running guest although the
    /// rest of memory does not exist yet. It proves nothing: fill() does that once all memory exists. Must be called
    /// after begin_pieces(). Returns false if it did not succeed. Throws Error if KVM refuses.
    bool fill_piece(GuestRange piece, const std::stop_token& stop);

    /// Adds the scratch memslot before the first fill(). If a VM has interrupt controllers in the kernel, adding a
    /// memslot may wait for a grace period of the kernel, so whoever makes the VM should call this before it creates
    /// them. Throws Error.
    void add_scratch() { vcpus_.add_scratch(); }

    /// Makes the prefault vCPUs that fill() needs for `workers` workers, before fill() is called. Throws Error.
    void prepare(unsigned workers, const std::stop_token& stop = {});

    /// Notes whether the guest runs from now on. A running guest may lead a prefault vCPU astray; a failure then goes
    /// into the report and is not thrown. Threads: any.
    void note_guest_runs(bool runs = true) noexcept { vcpus_.note_guest_runs(runs); }

    [[nodiscard]] const SecondLevelHost& host() const noexcept { return vcpus_.host(); }
    /// The address of page tables that map all memory to itself, for a guest that adopts them; 0 before the first
    /// prefault vCPU.
    [[nodiscard]] GuestAddress page_tables() const noexcept;

    /// What KVM has mapped of guest memory now. The number may be low by the few pages of the scratch memslot that the
    /// host has moved since the last fill. Threads: any.
    [[nodiscard]] MappedPages mapped() const { return vcpus_.mapped_guest_memory(); }
    /// Like mapped(), but exact. Must be called only while no vCPU of the guest runs. Throws Error.
    [[nodiscard]] MappedPages mapped_at_rest();

    /// The prefault vCPUs themselves.
    [[nodiscard]] PrefaultVcpus& prefault_vcpus() noexcept { return vcpus_; }

  private:
    class Fill;

    kvm::Vm& vm_;
    const GuestMemory& memory_;
    const Placement& placement_;
    PinnedMemory& pins_;
    bool has_smm_;
    Method piece_method_ = Method::kNone; ///< of fill_piece(); kNone before begin_pieces()
    PrefaultVcpus vcpus_;
};

} // namespace vmm::prefault
