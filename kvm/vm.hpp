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

/// The sets of memslots that a VM can have (api.rst, 4.35: bits 16 to 31 of the slot).
enum class AddressSpace : std::uint32_t {
    kNormal = 0,
    kSmm = 1, ///< what a vCPU sees in system management mode; needs KVM_CAP_X86_SMM
};

/// What a guest may do with a memslot.
enum class MemslotAccess {
    kWritable,
    kReadOnly, ///< a write exits as MMIO (KVM_MEM_READONLY); needs KVM_CAP_READONLY_MEM
};

/// A VM: its memslots, in-kernel interrupt controllers and timer. The VM must outlive its vCPUs, and the memory behind
/// its memslots must stay mapped as long as the VM lives.
///
/// Threads: one thread sets it up; any thread may call the const members.
class Vm {
  public:
    /// KVM_CREATE_VM. Throws Error.
    explicit Vm(const System& system);
    /// Takes over a VM that exists already. `vcpu_mmap_bytes` is KVM_GET_VCPU_MMAP_SIZE.
    Vm(UniqueFd vm, std::size_t vcpu_mmap_bytes) noexcept : fd_(std::move(vm)), vcpu_mmap_bytes_(vcpu_mmap_bytes) {}

    /// The same as System::extension(), for this VM.
    [[nodiscard]] int extension(int capability) const noexcept;

    /// Adds memslot `slot` (0 to 0xffff): guest-physical `range` becomes the bytes at `host`; both are page-aligned. It
    /// may be called while vCPUs run. No function takes a memslot away, because deleting or moving one drops every
    /// second-level mapping of the VM. Throws Error.
    void add_memslot(std::uint32_t slot, GuestRange range, std::byte* host,
                     AddressSpace address_space = AddressSpace::kNormal,
                     MemslotAccess access = MemslotAccess::kWritable);

    /// Switches dirty logging of a memslot on or off (api.rst, 4.35, KVM_MEM_LOG_DIRTY_PAGES). The other arguments are
    /// those of add_memslot(). Switching it on splits large mappings; switching it off drops the small ones, and the
    /// caller must prefault them again. Throws Error.
    void log_dirty_pages(std::uint32_t slot, GuestRange range, std::byte* host, bool on,
                         AddressSpace address_space = AddressSpace::kNormal);

    /// Switches piecewise watching on or off for dirty logs that begin later (api.rst, 7.18,
    /// KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 with KVM_DIRTY_LOG_INITIALLY_SET). If it is on, a new log protects and splits
    /// nothing and reports all pages as written; the caller then watches pages with watch_pages(). take_dirty_log()
    /// watches the pages that it returns again, also piece by piece, so that vCPUs never wait long.
    /// Returns false if KVM cannot do this: then logs are as before. Must not be called while a log is on.
    [[nodiscard]] bool watch_by_piece(bool on) noexcept;
    /// Marks the pages whose bit is set in `pages` as not written, and watches them from now on (KVM_CLEAR_DIRTY_LOG).
    /// Bit 0 of `pages` is page `first_page` of the memslot, which must be a multiple of 64. `count` must be a multiple
    /// of 64, too, or reach the end of the memslot. Throws Error. Threads: any.
    void watch_pages(std::uint32_t slot, std::uint64_t first_page, std::uint64_t count,
                     std::span<const std::uint64_t> pages, AddressSpace address_space = AddressSpace::kNormal) const;

    /// The pages of a memslot that vCPUs, or KVM for them, have written since the log began or was last read (api.rst,
    /// 4.8, KVM_GET_DIRTY_LOG). There is one bit for each page of 4 KiB, and the first page is bit 0. `bytes` is the
    /// size of the memslot. Throws Error.
    [[nodiscard]] std::vector<std::uint64_t> take_dirty_log(std::uint32_t slot, std::uint64_t bytes,
                                                            AddressSpace address_space = AddressSpace::kNormal) const;

    /// From now on each write to `event_fd` is one edge on interrupt line `gsi` (KVM_IRQFD), until `event_fd` is
    /// closed. Throws Error.
    void attach_irqfd(int event_fd, std::uint32_t gsi);

    /// Puts interrupt line `gsi` up or down (KVM_IRQ_LINE). A level-triggered input of the I/O APIC interrupts as long
    /// as its line is up. Returns false if KVM refuses. Threads: any.
    [[nodiscard]] bool set_interrupt_line(std::uint32_t gsi, bool up) const noexcept;

    /// From now on each 4-byte write of `value` to `address` becomes a write to `event_fd`, without an exit to user
    /// space (api.rst, 4.59). `address` must not be RAM. Throws Error.
    void attach_ioeventfd(int event_fd, GuestAddress address, std::uint32_t value);

    /// From now on each write to `address`, with any value and any width, becomes a write to `event_fd`. `address` must
    /// not be RAM. Needs KVM_CAP_IOEVENTFD_ANY_LENGTH (all x86 kernels since 4.4). Throws Error.
    void attach_ioeventfd(int event_fd, GuestAddress address);
    /// Detaches `event_fd` from `address`, after any such write in progress has ended. Does nothing if it is not
    /// attached. Threads: any.
    void detach_ioeventfd(int event_fd, GuestAddress address) const noexcept;

    /// Delivers a message-signalled interrupt at once (KVM_SIGNAL_MSI). Threads: any.
    void signal_msi(std::uint64_t address, std::uint32_t data) const noexcept;

    /// Opens the counters of the VM as a whole. Throws Error if the kernel (before 5.14) has no counters.
    [[nodiscard]] Stats stats() const;

    // The members below exist on an x86 VM only: kvm/x86/vm.cpp.

    /// Creates the PICs and the I/O APIC, and a local APIC for each vCPU that is created afterwards. Must be called
    /// before the first vCPU is created. Throws Error.
    void create_irqchip();
    /// Creates the i8254 timer at ports 0x40-0x43, with the speaker's port 0x61. Must be called after create_irqchip().
    /// Throws Error.
    void create_pit();
    /// Reserves 4 pages from `base` on for KVM: Intel processors without unrestricted guest mode keep a TSS (3 pages)
    /// and a page table (1 page) there while the guest is in real mode. The pages must not be RAM. Harmless on other
    /// processors. Throws Error.
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
