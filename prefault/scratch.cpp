#include "prefault/scratch.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cstring>

namespace vmm::prefault {

namespace {

constexpr std::uint64_t kPageBytes = 4 * kKiB;
constexpr std::uint64_t kEntriesPerTable = 512;

// Page table entries (AMD64 volume 2, 5.4; Intel SDM volume 3, 4.5). Accessed and dirty are set beforehand: the
// processor then never writes the tables, and shadow paging need not wait for the first write to map writable.
constexpr std::uint64_t kPresentWritableUser = 0x07;
constexpr std::uint64_t kAccessedDirty = 0x60;
constexpr std::uint64_t kLargePage = 0x80;
constexpr std::uint64_t kTableEntry = kPresentWritableUser | kAccessedDirty;
constexpr std::uint64_t kLeafEntry = kTableEntry | kLargePage;

// touch: lock orq $0, (%rdi)     a write that changes nothing, atomic with whatever the guest does there
//        add  %rdx, %rdi
//        cmp  %rsi, %rdi
//        jb   touch
//        mov  $kDonePort, %dx
//        out  %al, %dx           allowed in ring 3 by IOPL 3; comes back to us as a port exit
//        hlt                     never reached: RIP is set for each chunk. In ring 3 it would fault, and be seen.
// clang-format off
constexpr std::array<std::uint8_t, 19> kStub = {
    0xf0, 0x48, 0x83, 0x0f, 0x00,                                            // lock orq $0, (%rdi)
    0x48, 0x01, 0xd7,                                                        // add %rdx, %rdi
    0x48, 0x39, 0xf7,                                                        // cmp %rsi, %rdi
    0x72, 0xf3,                                                              // jb touch
    0x66, 0xba, Scratch::kDonePort & 0xff, (Scratch::kDonePort >> 8) & 0xff, // mov $kDonePort, %dx
    0xee,                                                                    // out %al, %dx
    0xf4,                                                                    // hlt
};
// clang-format on

// All of it is zero but the offset of the I/O bitmap (AMD64 volume 2, 12.2.5): a bit that is 0 permits its port.
constexpr auto kTaskState = [] {
    constexpr std::size_t kBitmapOffsetField = 102;
    constexpr std::uint8_t kBitmapOffset = 104;
    std::array<std::uint8_t, Scratch::kTaskStateBytes> segment{};
    segment[kBitmapOffsetField] = kBitmapOffset;
    return segment;
}();

// The pages of the slot, in order.
constexpr std::uint64_t kStubPage = 0;
constexpr std::uint64_t kTaskStateOffset = 0x800; // within the stub's page
constexpr std::uint64_t kRootPage = 1;
constexpr std::uint64_t kFirstPointerPage = 2;

std::uint64_t pointer_tables(const Scratch::Layout& layout) {
    return (layout.largest_bytes / kGiB + kEntriesPerTable - 1) / kEntriesPerTable;
}

} // namespace

std::uint64_t Scratch::bytes_for(const Layout& layout, std::uint64_t mapped_bytes) {
    const std::uint64_t directories = layout.one_gib_pages ? 0 : mapped_bytes / kGiB;
    return (kFirstPointerPage + pointer_tables(layout) + directories) * kPageBytes;
}

Scratch::Scratch(kvm::Vm& vm, std::uint32_t slot, const Layout& layout)
    : layout_(layout), slot_(slot),
      mapping_(Mapping::anonymous(bytes_for(layout), 2 * kMiB, 0, "the prefault scratch slot")) {
    assert(is_aligned(to_integer(layout.base), 2 * kMiB) && is_aligned(layout.mapped_bytes, kGiB));
    assert(is_aligned(layout.largest_bytes, kGiB) && layout.largest_bytes <= 128 * kTiB);
    assert(layout.mapped_bytes <= layout.largest_bytes);
    assert((GuestRange{GuestAddress{0}, layout.mapped_bytes}.contains(range())));
    ::madvise(mapping_.data(), mapping_.size(), MADV_NOHUGEPAGE); // Advice; small pages keep the count exact.
    ::madvise(mapping_.data(), mapping_.size(), MADV_DONTFORK);
    refresh();
    vm.add_memslot(slot, range(), mapping_.data());
}

void Scratch::add_to(kvm::Vm& vm, kvm::AddressSpace address_space) const {
    vm.add_memslot(slot_, range(), mapping_.data(), address_space);
}

void Scratch::map_up_to(std::uint64_t bytes) {
    assert(bytes <= layout_.largest_bytes);
    layout_.mapped_bytes = std::max(layout_.mapped_bytes, *align_up(bytes, kGiB));
    refresh();
}

GuestRange Scratch::used_range() const noexcept {
    return {layout_.base, bytes_for(layout_, layout_.mapped_bytes)};
}

GuestAddress Scratch::page(std::uint64_t index) const noexcept {
    return GuestAddress{to_integer(layout_.base) + index * kPageBytes};
}

GuestAddress Scratch::stub() const noexcept {
    return page(kStubPage);
}

GuestAddress Scratch::task_state() const noexcept {
    return GuestAddress{to_integer(page(kStubPage)) + kTaskStateOffset};
}

GuestAddress Scratch::page_tables() const noexcept {
    return page(kRootPage);
}

void Scratch::write(std::uint64_t offset, std::span<const std::byte> bytes) {
    std::byte* const target = mapping_.data() + offset;
    // Compared first: on a shadow-paging host these tables may be in use, and then they must not even be rewritten.
    if (std::memcmp(target, bytes.data(), bytes.size()) != 0) {
        std::memcpy(target, bytes.data(), bytes.size());
    }
}

void Scratch::write_entry(std::uint64_t page_index, std::uint64_t entry_index, std::uint64_t value) {
    write(page_index * kPageBytes + entry_index * sizeof value, std::as_bytes(std::span(&value, 1)));
}

void Scratch::refresh() {
    write(0, std::as_bytes(std::span(kStub)));
    write(kTaskStateOffset, std::as_bytes(std::span(kTaskState)));
    const std::uint64_t first_directory_page = kFirstPointerPage + pointer_tables(layout_);
    for (std::uint64_t gib = 0; gib < layout_.mapped_bytes / kGiB; ++gib) {
        const std::uint64_t pointer_page = kFirstPointerPage + gib / kEntriesPerTable;
        write_entry(kRootPage, gib / kEntriesPerTable, to_integer(page(pointer_page)) | kTableEntry);
        if (layout_.one_gib_pages) {
            write_entry(pointer_page, gib % kEntriesPerTable, gib * kGiB | kLeafEntry);
            continue;
        }
        const std::uint64_t directory_page = first_directory_page + gib;
        write_entry(pointer_page, gib % kEntriesPerTable, to_integer(page(directory_page)) | kTableEntry);
        for (std::uint64_t entry = 0; entry < kEntriesPerTable; ++entry) {
            write_entry(directory_page, entry, (gib * kGiB + entry * 2 * kMiB) | kLeafEntry);
        }
    }
}

} // namespace vmm::prefault
