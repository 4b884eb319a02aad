// One virtual machine of KVM.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kvm/host/guest_address.hpp"
#include "kvm/host/unique_fd.hpp"
#include "kvm/stats.hpp"
#include "kvm/system.hpp"
#include "kvm/uapi.hpp"

namespace vmm::kvm {

/// The sets of memslots a VM can have (api.rst, 4.35: bits 16 to 31 of the slot).
enum class AddressSpace : std::uint32_t {
    kNormal = 0,
    kSmm = 1, ///< what a vCPU sees in system management mode; needs KVM_CAP_X86_SMM
};

/// What a guest may do with a memslot.
enum class MemslotAccess {
    kWritable,
    kReadOnly, ///< its writes leave KVM as MMIO (KVM_MEM_READONLY); needs KVM_CAP_READONLY_MEM
};

/// A VM: memslots, the in-kernel interrupt controllers and timer. It outlives its vCPUs, and the memory that its
/// memslots name is unmapped only after it.
///
/// Threads: set up from one thread; the const members may be called from any.
class Vm {
  public:
    /// KVM_CREATE_VM. Throws Error.
    explicit Vm(const System& system);
    /// A VM that exists already. `vcpu_mmap_bytes` is KVM_GET_VCPU_MMAP_SIZE.
    Vm(UniqueFd vm, std::size_t vcpu_mmap_bytes) noexcept : fd_(std::move(vm)), vcpu_mmap_bytes_(vcpu_mmap_bytes) {}

    /// The same as System::extension(), for this VM.
    [[nodiscard]] int extension(int capability) const noexcept;

    /// Adds memslot `slot` (0 to 0xffff): guest-physical `range` is `host`'s bytes. Both page-aligned. Also while vCPUs
    /// run. There is no way to take a memslot away: deleting or moving one drops every second-level mapping of the VM.
    /// Throws Error.
    void add_memslot(std::uint32_t slot, GuestRange range, std::byte* host,
                     AddressSpace address_space = AddressSpace::kNormal,
                     MemslotAccess access = MemslotAccess::kWritable);

    /// Switches dirty logging of a memslot on or off (api.rst, 4.35, KVM_MEM_LOG_DIRTY_PAGES); the other arguments are
    /// those it was added with. Switching it on splits large mappings. Switching it off drops the small ones, which
    /// are then to be prefaulted again. Throws Error.
    void log_dirty_pages(std::uint32_t slot, GuestRange range, std::byte* host, bool on,
                         AddressSpace address_space = AddressSpace::kNormal);

    /// Whether from now on it is the caller who has pages watched, piece by piece (api.rst, 7.18,
    /// KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 with KVM_DIRTY_LOG_INITIALLY_SET). A log that begins then protects nothing and
    /// splits nothing, and says that all pages have been written; watch_pages() begins with a piece. take_dirty_log()
    /// begins anew with what it returns, also piece by piece, so that vCPUs are not kept waiting for long. Returns
    /// false if KVM cannot: then a log is as before. Not while one is on.
    [[nodiscard]] bool watch_by_piece(bool on) noexcept;
    /// Says that the pages of `pages` whose bit is set have not been written, and watches them from now on
    /// (KVM_CLEAR_DIRTY_LOG). `pages` are those of a memslot from `first_page` on, a multiple of 64; `count` is one,
    /// too, or reaches the end of the memslot. Throws Error. Threads: any.
    void watch_pages(std::uint32_t slot, std::uint64_t first_page, std::uint64_t count,
                     std::span<const std::uint64_t> pages, AddressSpace address_space = AddressSpace::kNormal) const;

    /// The pages of a memslot that vCPUs, or KVM for them, have written since its log began or was read last
    /// (api.rst, 4.8, KVM_GET_DIRTY_LOG): a bit for each page of 4 KiB, the first in bit 0. `bytes` is the size of the
    /// memslot. Throws Error.
    [[nodiscard]] std::vector<std::uint64_t> take_dirty_log(std::uint32_t slot, std::uint64_t bytes,
                                                            AddressSpace address_space = AddressSpace::kNormal) const;

    /// Each write to `event_fd` from now on is one edge on interrupt line `gsi` (KVM_IRQFD), until `event_fd` is
    /// closed. Throws Error.
    void attach_irqfd(int event_fd, std::uint32_t gsi);

    /// Puts interrupt line `gsi` up or down (KVM_IRQ_LINE); an input of the I/O APIC that is level-triggered interrupts
    /// as long as it is up. False if KVM refuses. Threads: any.
    [[nodiscard]] bool set_interrupt_line(std::uint32_t gsi, bool up) const noexcept;

    /// Each 4-byte write of `value` to `address`, which is no RAM, becomes a write to `event_fd` from now on, without
    /// an exit to user space (api.rst, 4.59). Throws Error.
    void attach_ioeventfd(int event_fd, GuestAddress address, std::uint32_t value);

    /// Each write of any width to `address` alone, which is no RAM, becomes a write to `event_fd` from now on. Needs
    /// KVM_CAP_IOEVENTFD_ANY_LENGTH (all x86 kernels since 4.4). Throws Error.
    void attach_ioeventfd(int event_fd, GuestAddress address);
    /// Ends that, once no vCPU is in the midst of such a write. Nothing happens if it was not attached. Threads: any.
    void detach_ioeventfd(int event_fd, GuestAddress address) const noexcept;

    /// Delivers a message-signalled interrupt at once (KVM_SIGNAL_MSI). Threads: any.
    void signal_msi(std::uint64_t address, std::uint32_t data) const noexcept;

    /// The counters of the VM as a whole. Throws Error if the kernel (before 5.14) has none.
    [[nodiscard]] Stats stats() const;

    // What only an x86 VM has: kvm/x86/vm.cpp.

    /// Creates PIC, I/O APIC and, for each vCPU created afterwards, a local APIC. Comes before the first vCPU. Throws
    /// Error.
    void create_irqchip();
    /// Creates the i8254 timer at ports 0x40-0x43, with the speaker's port 0x61. Comes after create_irqchip(). Throws
    /// Error.
    void create_pit();
    /// Where Intel processors without unrestricted guest mode keep a TSS (3 pages) and a page table (1 page) while the
    /// guest is in real mode: 4 pages from `base` that are no RAM. Harmless elsewhere. Throws Error.
    void reserve_real_mode_pages(GuestAddress base);

    [[nodiscard]] std::size_t vcpu_mmap_bytes() const noexcept { return vcpu_mmap_bytes_; }
    /// The descriptor, on loan.
    [[nodiscard]] int fd() const noexcept { return fd_.get(); }

  private:
    void set_memslot(const kvm_userspace_memory_region& region, const char* tried);

    UniqueFd fd_;
    std::size_t vcpu_mmap_bytes_;
    bool watches_by_piece_ = false;
};

} // namespace vmm::kvm
