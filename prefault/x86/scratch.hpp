// The scratch memslot: the code and the page tables that prefault vCPUs run on.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kvm/host/guest_address.hpp"
#include "kvm/host/mapping.hpp"
#include "kvm/vm.hpp"

namespace vmm::prefault {

/// Guest page tables that map [0, mapped_bytes()) to itself, writable and for ring 3, and the stub that touches memory.
/// The memslot lives as long as its VM, because deleting a memslot drops every second-level mapping.
///
/// The memslot is in the guest's address space, but in no memory map. The guest can write to it unless it is read-only
/// (Protection). It gains nothing by that: code that it writes there can only run as a vCPU of its own VM, and
/// refresh() restores the content before each use.
///
/// On a host with shadow paging the second level belongs to the guest's page tables. A guest that uses these tables
/// (built-in guest, option `tables=`), with the same CR0, CR4 and EFER, shares what the prefault vCPUs filled.
///
/// Threads: const after construction, except for refresh(), map_up_to() and add_to(); nobody else may use it during
/// these.
class Scratch {
  public:
    /// CR0 = PG|WP|NE|ET|MP|PE, CR4 = PAE, EFER = LMA|LME. They are part of the role by which KVM distinguishes
    /// second-level roots.
    static constexpr std::uint64_t kCr0 = 0x80010033;
    static constexpr std::uint64_t kCr4 = 0x20;
    static constexpr std::uint64_t kEfer = 0x500;

    /// The stub ends a chunk by writing to this port. No device of ours has this port, and the value has no meaning.
    static constexpr std::uint16_t kDonePort = 0x0501;

    /// The size of the task state segment, including the part of its I/O bitmap that covers kDonePort.
    static constexpr std::uint32_t kTaskStateBytes = 104 + kDonePort / 8 + 2;

    /// Whether the guest can write to the memslot. kReadOnly is only for shadow paging, where KVM's software walks
    /// these tables; a write of the guest then exits as MMIO that no device claims. The hardware walkers of NPT, and of
    /// EPT with Accessed and Dirty bits, treat each access to a page table as a write (AMD64 volume 2, 15.25.5; Intel
    /// SDM volume 3, 29.3.3.2), so they cannot walk tables in a read-only memslot.
    enum class Protection { kWritable, kReadOnly };

    /// Where the memslot lies, and how much memory its tables map.
    struct Layout {
        GuestAddress base;           ///< 2 MiB-aligned; the memslot ends below `mapped_bytes` and overlaps no other
        std::uint64_t mapped_bytes;  ///< what the tables map at first, from 0 on: a multiple of 1 GiB
        std::uint64_t largest_bytes; ///< what they can map at most: a multiple of 1 GiB, `mapped_bytes` to 128 TiB
        bool one_gib_pages;          ///< whether the guest's CPUID has pdpe1gb
    };

    /// The size of the memslot of a layout, in bytes: a multiple of 4 KiB.
    [[nodiscard]] static std::uint64_t bytes_for(const Layout& layout) {
        return bytes_for(layout, layout.largest_bytes);
    }

    /// Adds memslot `slot` to `vm`. Throws Error.
    Scratch(kvm::Vm& vm, std::uint32_t slot, const Layout& layout, Protection protection = Protection::kWritable);

    /// Restores every byte of the memslot, wherever the guest may have written: the stub, the tables, the bytes between
    /// them, and the pages that are not in use yet.
    void refresh();
    /// Makes the tables map at least [0, bytes) from now on. `bytes` must be at most Layout::largest_bytes.
    void map_up_to(std::uint64_t bytes);
    /// Adds the memslot to another address space, too. Throws Error.
    void add_to(kvm::Vm& vm, kvm::AddressSpace address_space) const;

    /// The memslot.
    [[nodiscard]] GuestRange range() const noexcept { return {layout_.base, mapping_.size()}; }
    /// The part of the memslot that is in use.
    [[nodiscard]] GuestRange used_range() const noexcept;
    [[nodiscard]] std::uint64_t largest_bytes() const noexcept { return layout_.largest_bytes; }
    [[nodiscard]] std::uint64_t mapped_bytes() const noexcept { return layout_.mapped_bytes; }
    [[nodiscard]] bool is_read_only() const noexcept { return protection_ == Protection::kReadOnly; }
    /// The first instruction of the stub that writes. RDI: address, RSI: end, RDX: stride.
    [[nodiscard]] GuestAddress stub() const noexcept;
    /// The first instruction of the stub that reads. It takes the same registers, and uses RAX.
    [[nodiscard]] GuestAddress reading_stub() const noexcept;
    /// True if `rip` is at or behind the instruction by which a stub reports that it is done.
    [[nodiscard]] bool is_end_of_stub(std::uint64_t rip) const noexcept;
    /// A task state segment whose I/O bitmap permits kDonePort to ring 3. On hardware IOPL 3 alone permits the port,
    /// but if software runs ring 3 natively (kvm_pvm), the flags lose their IOPL.
    [[nodiscard]] GuestAddress task_state() const noexcept;
    /// The page tables, for CR3.
    [[nodiscard]] GuestAddress page_tables() const noexcept;

  private:
    [[nodiscard]] GuestAddress page(std::uint64_t index) const noexcept;
    [[nodiscard]] static std::uint64_t bytes_for(const Layout& layout, std::uint64_t mapped_bytes);
    using Words = std::array<std::uint64_t, 512>;
    /// The content that page `index`, which must be in use, must have.
    [[nodiscard]] Words content_of_page(std::uint64_t index) const noexcept;
    void write_page(std::uint64_t index, const Words& words) noexcept;

    Layout layout_;
    std::uint32_t slot_;
    Protection protection_;
    Mapping mapping_;
};

} // namespace vmm::prefault
