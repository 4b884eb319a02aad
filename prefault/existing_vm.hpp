// Pre-population of a VM that another program has made.
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

/// Describes a VM that another program has made, as far as its second level is concerned. The VM must have interrupt
/// controllers in the kernel (KVM_CREATE_IRQCHIP), because KVM cannot park a vCPU without them.
struct ExistingVm {
    int kvm_fd = -1; ///< /dev/kvm, a loan during the call
    int vm_fd = -1;  ///< the VM, a loan during the call, which duplicates it
    /// The memslots of the VM, in ascending order; at most 16. Their host memory must outlive what fill() returns.
    std::vector<MemoryRegion> memslots;
    PageSize page_size = PageSize::kThp; ///< what backs the memslots
    Pin pin = Pin::kNone;

    /// The number of a free memslot, and its place: `scratch_base` is a multiple of 2 MiB, and the scratch_bytes() from
    /// there on must be in no other memslot. The memslot gets page tables and a few instructions. Adding it drops no
    /// mapping, but it stays as long as the VM, because taking a memslot away drops all mappings.
    std::uint32_t scratch_slot = 0;
    GuestAddress scratch_base{};

    /// Makes a vCPU (KVM_CREATE_VCPU) and gives us its descriptor to keep; the vCPU never runs the guest. Its id must
    /// be above those of all other vCPUs, and its CPUID the same as theirs, because the width of addresses decides
    /// which vCPUs share a second level. It is called on the thread of fill(), and fill() passes on what it throws.
    std::function<int()> create_vcpu;
};

/// How much guest-physical address space the scratch memslot of `vm` takes, in bytes: some KiB for each GiB of
/// addresses up to the highest memslot. Throws Error if a memslot or the scratch memslot is above the highest possible
/// address.
[[nodiscard]] std::uint64_t scratch_bytes(const ExistingVm& vm);

/// A second level that was filled, and what keeps it full: the parked prefault vCPUs, and the memory of the scratch
/// memslot. It must be destroyed after the last vCPU of the VM has run. If it were destroyed earlier, the guest could
/// reach whatever takes the place of that memory.
///
/// Threads: one at a time. The guest may run meanwhile.
class Filled {
  public:
    Filled(Filled&&) noexcept;
    Filled& operator=(Filled&&) noexcept;
    ~Filled();

    /// The report of the last fill.
    [[nodiscard]] const Report& report() const noexcept;
    /// Fills again: it leaves what is mapped, and maps what was lost (e.g. after dirty logging). Content never changes.
    /// `guest_runs` must be true if the guest runs. Throws Error.
    const Report& again(const Options& options, bool guest_runs, const std::stop_token& stop = {});
    /// The address, for CR3, of page tables in the scratch memslot that map all memory to itself; 0 unless a second
    /// level was filled. On hosts without EPT or NPT (shadow paging) only vCPUs that run on these tables, with CR0
    /// 0x80010033, CR4 0x20 and EFER 0x500, benefit from the fill.
    [[nodiscard]] GuestAddress page_tables() const noexcept;
    /// What KVM has mapped of the memslots now.
    [[nodiscard]] MappedPages mapped() const;

  private:
    struct __attribute__((visibility("hidden"))) Parts;
    friend Filled fill(const ExistingVm& vm, const Options& options, const std::stop_token& stop);
    explicit Filled(std::unique_ptr<Parts> parts) noexcept;

    std::unique_ptr<Parts> parts_;
};

/// Fills what `options` ask for. Call it before the first vCPU of the VM runs; Filled::again() is for later.
/// Options::smm is not possible. If `stop` is requested, the report says what was done.
/// Throws Error if `vm` or `options` ask for something impossible, or the host fails; also throws what the progress
/// sink and `create_vcpu` throw. The VM may then keep prefault vCPUs, which it cannot lose: give up the VM.
[[nodiscard]] Filled fill(const ExistingVm& vm, const Options& options, const std::stop_token& stop = {});

} // namespace vmm::prefault
VMM_API_END
