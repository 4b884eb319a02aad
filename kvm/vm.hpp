// One virtual machine of KVM.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvm/guest_address.hpp"
#include "kvm/stats.hpp"
#include "kvm/system.hpp"
#include "kvm/unique_fd.hpp"

namespace vmm::kvm {

/// A VM: memslots, the in-kernel interrupt controllers and timer. Outlives its vCPUs and whatever memory its memslots
/// name is unmapped only after it.
///
/// Threads: set up from one thread; the const members may be called from any.
class Vm {
  public:
    /// KVM_CREATE_VM. Throws Error.
    explicit Vm(const System& system);

    /// As System::extension, for this VM.
    [[nodiscard]] int extension(int capability) const noexcept;

    /// PIC, IO-APIC and, for each vCPU created afterwards, a local APIC. Before the first vCPU. Throws Error.
    void create_irqchip();
    /// The i8254 timer at ports 0x40-0x43, with the speaker's port 0x61. After create_irqchip(). Throws Error.
    void create_pit();
    /// Where Intel processors without unrestricted guest mode keep a TSS (3 pages) and a page table (1 page) while the
    /// guest is in real mode: 4 pages from `base` that are no RAM. Harmless elsewhere. Throws Error.
    void reserve_real_mode_pages(GuestAddress base);

    /// Adds memslot `slot` (0 and up): guest-physical `range` is `host`'s bytes. Both page-aligned. There is no way to
    /// take a memslot away: deleting or moving one drops every second-level mapping of the VM. Throws Error.
    void add_memslot(std::uint32_t slot, GuestRange range, std::byte* host);

    /// Each write to `event_fd` from now on is one edge on interrupt line `gsi` (KVM_IRQFD). Throws Error.
    void attach_irqfd(int event_fd, std::uint32_t gsi);

    /// The counters of the VM as a whole. Throws Error where the kernel (before 5.14) has none.
    [[nodiscard]] Stats stats() const;

    [[nodiscard]] std::size_t vcpu_mmap_bytes() const noexcept { return vcpu_mmap_bytes_; }
    /// The descriptor, on loan.
    [[nodiscard]] int fd() const noexcept { return fd_.get(); }

  private:
    UniqueFd fd_;
    std::size_t vcpu_mmap_bytes_;
};

} // namespace vmm::kvm
