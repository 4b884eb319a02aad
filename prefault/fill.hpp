// Pre-population of a VM that somebody else has made.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stop_token>
#include <vector>

#include "kvm/host/export.hpp"
#include "kvm/host/guest_memory.hpp"
#include "prefault/host/pin_kind.hpp"
#include "prefault/options.hpp"

VMM_API_BEGIN
namespace vmm::prefault {

/// A VM, as far as its second level is concerned. It has in-kernel interrupt controllers (KVM_CREATE_IRQCHIP), without
/// which KVM has no way of parking a vCPU.
struct ExistingVm {
    int kvm_fd = -1; ///< /dev/kvm, a loan during the call
    int vm_fd = -1;  ///< the VM, a loan during the call: it is duplicated
    /// Its memslots, in ascending order; at most 16. Their host memory outlives what fill() returns.
    std::vector<MemoryRegion> memslots;
    PageSize page_size = PageSize::kThp; ///< what backs them
    Pin pin = Pin::kNone;

    /// A number of a memslot that is free, for page tables and a few instructions of ours, and where it may lie: a
    /// multiple of 2 MiB, with scratch_bytes() from there on that are in no memslot. Adding it drops no mapping; it
    /// stays as long as the VM, because taking a memslot away drops all of them.
    std::uint32_t scratch_slot = 0;
    GuestAddress scratch_base{};

    /// Makes a vCPU (KVM_CREATE_VCPU) and gives us its descriptor to keep: with an id above all others', and the same
    /// CPUID as theirs, for the width of addresses decides which vCPUs share a second level. It is never run as a vCPU
    /// of the guest. Called on the thread of fill(), which throws what it throws.
    std::function<int()> create_vcpu;
};

/// How much guest-physical address space the scratch memslot of `vm` takes: some KiB for each GiB of addresses up to
/// the highest memslot.
[[nodiscard]] std::uint64_t scratch_bytes(const ExistingVm& vm);

/// A second level that was filled, and what keeps it so: the prefault vCPUs, parked, and the scratch memslot's memory.
/// To be destroyed after the last vCPU of the VM has run: before, the guest could reach whatever takes the place of
/// that memory.
///
/// Threads: one at a time; the guest may run meanwhile.
class Filled {
  public:
    Filled(Filled&&) noexcept;
    Filled& operator=(Filled&&) noexcept;
    ~Filled();

    /// What the last fill came to.
    [[nodiscard]] const Report& report() const noexcept;
    /// Fills again: what is there is found there, what was lost (after dirty logging, say) is made good. Content never
    /// changes. While the guest runs, `guest_runs` must be true. Throws Error.
    const Report& again(const Options& options, bool guest_runs, const std::stop_token& stop = {});
    /// Page tables in the scratch memslot that map all memory to itself, for CR3. On hosts without EPT or NPT (shadow
    /// paging) what was filled serves only vCPUs that run on them, with CR0 0x80010033, CR4 0x20 and EFER 0x500.
    [[nodiscard]] GuestAddress page_tables() const noexcept;
    /// What KVM has mapped of the memslots now.
    [[nodiscard]] MappedPages mapped() const;

  private:
    struct __attribute__((visibility("hidden"))) Parts;
    friend Filled fill(const ExistingVm& vm, const Options& options, const std::stop_token& stop);
    explicit Filled(std::unique_ptr<Parts> parts) noexcept;

    std::unique_ptr<Parts> parts_;
};

/// Fills what `options` ask for; `smm` is not possible. If `stop` is requested the report says what was done. Before
/// the first vCPU of the VM runs; Filled::again() is for later. Throws Error: `vm` or `options` ask for what cannot be,
/// or the host fails; and what the progress sink and `create_vcpu` throw. Then the VM may be left with prefault vCPUs,
/// which it cannot lose: it is to be given up.
[[nodiscard]] Filled fill(const ExistingVm& vm, const Options& options, const std::stop_token& stop = {});

} // namespace vmm::prefault
VMM_API_END
