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
#include "prefault/mapped_pages.hpp"
#include "prefault/options.hpp"
#include "prefault/report.hpp"

VMM_API_BEGIN
namespace vmm::prefault {

/// A VM that another program has made, as far as its second level is concerned. It has interrupt controllers in the
/// kernel (KVM_CREATE_IRQCHIP), without which KVM has no way of parking a vCPU.
struct ExistingVm {
    int kvm_fd = -1; ///< /dev/kvm, a loan during the call
    int vm_fd = -1;  ///< the VM, a loan during the call, which duplicates it
    /// Its memslots, in ascending order; at most 16. Their host memory outlives what fill() returns.
    std::vector<MemoryRegion> memslots;
    PageSize page_size = PageSize::kThp; ///< what backs them
    Pin pin = Pin::kNone;

    /// The number of a memslot that is free, and where that memslot may lie: a multiple of 2 MiB, from which on
    /// scratch_bytes() are in no other memslot. It gets page tables and a few instructions. Adding it drops no mapping;
    /// it stays as long as the VM, because taking a memslot away drops all mappings.
    std::uint32_t scratch_slot = 0;
    GuestAddress scratch_base{};

    /// Makes a vCPU (KVM_CREATE_VCPU) and gives us its descriptor to keep. Its id is above those of all others, and it
    /// has the same CPUID, because the width of addresses decides which vCPUs share a second level. It never runs the
    /// guest. Called on the thread of fill(), out of which comes what it throws.
    std::function<int()> create_vcpu;
};

/// How much guest-physical address space the scratch memslot of `vm` takes, in bytes: some KiB for each GiB of
/// addresses up to the highest memslot. Throws Error if a memslot or the scratch memslot is above the highest possible
/// address.
[[nodiscard]] std::uint64_t scratch_bytes(const ExistingVm& vm);

/// A second level that was filled, and what keeps it so: the prefault vCPUs, parked, and the memory of the scratch
/// memslot. It is destroyed after the last vCPU of the VM has run: before, the guest could reach whatever takes the
/// place of that memory.
///
/// Threads: one at a time; the guest may run meanwhile.
class Filled {
  public:
    Filled(Filled&&) noexcept;
    Filled& operator=(Filled&&) noexcept;
    ~Filled();

    /// The report of the last fill.
    [[nodiscard]] const Report& report() const noexcept;
    /// Fills again: what is there is found there, what was lost (after dirty logging, say) is made good. Content never
    /// changes. `guest_runs` must be true if the guest runs. Throws Error.
    const Report& again(const Options& options, bool guest_runs, const std::stop_token& stop = {});
    /// Page tables in the scratch memslot that map all memory to itself, for CR3; 0 unless a second level was filled.
    /// On hosts without EPT or NPT (shadow paging) what was filled serves only vCPUs that run on them, with CR0
    /// 0x80010033, CR4 0x20 and EFER 0x500.
    [[nodiscard]] GuestAddress page_tables() const noexcept;
    /// What KVM has mapped of the memslots now.
    [[nodiscard]] MappedPages mapped() const;

  private:
    struct __attribute__((visibility("hidden"))) Parts;
    friend Filled fill(const ExistingVm& vm, const Options& options, const std::stop_token& stop);
    explicit Filled(std::unique_ptr<Parts> parts) noexcept;

    std::unique_ptr<Parts> parts_;
};

/// Fills what `options` ask for, before the first vCPU of the VM runs; Filled::again() is for later. `smm` is not
/// possible. If `stop` is requested the report says what was done.
/// Throws Error if `vm` or `options` ask for what cannot be, or the host fails; and what the progress sink and
/// `create_vcpu` throw. The VM may then be left with prefault vCPUs, which it cannot lose: give it up.
[[nodiscard]] Filled fill(const ExistingVm& vm, const Options& options, const std::stop_token& stop = {});

} // namespace vmm::prefault
VMM_API_END
