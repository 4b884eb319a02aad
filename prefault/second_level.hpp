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

/// The second level of one VM, and all that it takes to fill it. A VM with interrupt controllers in the kernel, 1 GiB
/// of memory in memslot 0 and one vCPU fills it so:
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
/// Threads: one at a time, but for members that say otherwise; the guest may run meanwhile.
class SecondLevel {
  public:
    /// `memory` is what the memslots of `vm` have, and `placement` is where all of it lies; both may grow between two
    /// calls. All of these outlive the object, which outlives the last run of a vCPU of the VM. Throws Error.
    SecondLevel(kvm::Vm& vm, const GuestMemory& memory, const Placement& placement, PinnedMemory& pins,
                PrefaultVcpus::Setup setup);
    SecondLevel(const SecondLevel&) = delete;
    SecondLevel& operator=(const SecondLevel&) = delete;

    /// Populates what `options` ask for: host side, pin, second level, verification. May be used again at any time:
    /// what is there already is found there, and content never changes. If `stop` is requested the report says what was
    /// done, with `complete` false. Throws Error: `options` ask for what cannot be, or the host fails; and what the
    /// progress sink throws.
    Report fill(const Options& options, const std::stop_token& stop = {});

    /// Gets ready for fill_piece(), by `method` of the options. Whatever fill() did in between, it need not be called
    /// again. Throws Error.
    void begin_pieces(Method method, const std::stop_token& stop = {});
    /// Maps `piece`, a part of one region whose pages exist on the host, so that it serves a running guest although the
    /// rest of memory is not there yet. Nothing is proven: fill() does that, once all is there. Returns false if that
    /// did not succeed. After begin_pieces(). Throws Error if KVM refuses.
    bool fill_piece(GuestRange piece, const std::stop_token& stop);

    /// Adds the scratch memslot ahead of the first fill(). Once a VM has interrupt controllers in the kernel, adding a
    /// memslot may wait for a grace period of the kernel's, so whoever makes the VM calls this before it makes these.
    /// Throws Error.
    void add_scratch() { vcpus_.add_scratch(); }

    /// Makes the prefault vCPUs that fill() needs for `workers` workers, ahead of it. Throws Error.
    void prepare(unsigned workers, const std::stop_token& stop = {});

    /// Whether the guest runs from now on, which may lead a prefault vCPU astray: the report then says so, instead of
    /// an exception. Threads: any.
    void note_guest_runs(bool runs = true) noexcept { vcpus_.note_guest_runs(runs); }

    [[nodiscard]] const SecondLevelHost& host() const noexcept { return vcpus_.host(); }
    /// Page tables that map all memory to itself, for a guest that adopts them; 0 before the first prefault vCPU.
    [[nodiscard]] GuestAddress page_tables() const noexcept;

    /// What KVM has mapped of guest memory now, short by the few pages of the scratch memslot that may have been moved
    /// since the last fill. Threads: any.
    [[nodiscard]] MappedPages mapped() const { return vcpus_.mapped_guest_memory(); }
    /// The same, exactly; only while no vCPU of the guest runs. Throws Error.
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
