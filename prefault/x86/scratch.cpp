#include "prefault/x86/scratch.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cstring>

#include "prefault/host/numa.hpp"

namespace vmm::prefault {

namespace {

constexpr std::uint64_t kEntriesPerTable = 512;

// Page table entries (AMD64 volume 2, 5.4; Intel SDM volume 3, 4.5). Accessed and Dirty are set beforehand, so that the
// processor never writes to the tables, and shadow paging can map pages writable before the first write.
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
//        hlt                     never reached, because RIP is set for each chunk; in ring 3 it would fault
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
// The same stub with a read instead of a write. It is used for the scratch memslot itself if that is read-only.
constexpr std::array<std::uint8_t, 17> kReadingStub = {
    0x48, 0x8b, 0x07,                                                        // read: mov (%rdi), %rax
    0x48, 0x01, 0xd7,                                                        // add %rdx, %rdi
    0x48, 0x39, 0xf7,                                                        // cmp %rsi, %rdi
    0x72, 0xf5,                                                              // jb read
    0x66, 0xba, Scratch::kDonePort & 0xff, (Scratch::kDonePort >> 8) & 0xff, // mov $kDonePort, %dx
    0xee,                                                                    // out %al, %dx
    0xf4,                                                                    // hlt
};
// clang-format on
constexpr std::uint64_t kEndOfStub = 2; // the number of bytes from the `out` to the end

// The segment is all zero except for the offset of the I/O bitmap (AMD64 volume 2, 12.2.5). A bit that is 0 permits its
// port.
constexpr auto kTaskState = [] {
    constexpr std::size_t kBitmapOffsetField = 102;
    constexpr std::uint8_t kBitmapOffset = 104;
    std::array<std::uint8_t, Scratch::kTaskStateBytes> segment{};
    segment[kBitmapOffsetField] = kBitmapOffset;
    return segment;
}();

// The pages of the memslot, in order.
constexpr std::uint64_t kStubPage = 0;
constexpr std::uint64_t kReadingStubOffset = 0x40; // within the stub's page
constexpr std::uint64_t kTaskStateOffset = 0x800;
constexpr std::uint64_t kRootPage = 1;
constexpr std::uint64_t kFirstPointerPage = 2;

std::uint64_t pointer_tables(const Scratch::Layout& layout) {
    return (layout.largest_bytes / kGiB + kEntriesPerTable - 1) / kEntriesPerTable;
}

} // namespace

std::uint64_t Scratch::bytes_for(const Layout& layout, std::uint64_t mapped_bytes) {
    const std::uint64_t directories = layout.one_gib_pages ? 0 : mapped_bytes / kGiB;
    return (kFirstPointerPage + pointer_tables(layout) + directories) * kSmallPageBytes;
}

Scratch::Scratch(kvm::Vm& vm, std::uint32_t slot, const Layout& layout, Protection protection)
    : layout_(layout), slot_(slot), protection_(protection),
      mapping_(Mapping::anonymous(bytes_for(layout), 2 * kMiB, 0, "the prefault scratch slot")) {
    assert(is_aligned(to_integer(layout.base), 2 * kMiB) && is_aligned(layout.mapped_bytes, kGiB));
    assert(is_aligned(layout.largest_bytes, kGiB) && layout.largest_bytes <= 128 * kTiB);
    assert(layout.mapped_bytes <= layout.largest_bytes);
    assert((GuestRange{GuestAddress{0}, layout.mapped_bytes}.contains(range())));
    ::madvise(mapping_.data(), mapping_.size(), MADV_NOHUGEPAGE); // This is only advice; small pages keep the count
                                                                  // exact.
    ::madvise(mapping_.data(), mapping_.size(), MADV_DONTFORK);
    ::madvise(mapping_.data(), mapping_.size(), MADV_UNMERGEABLE); // Keeps KSM away, as for guest memory.
    keep_from_numa_balancing({mapping_.data(), mapping_.size()});
    refresh();
    add_to(vm, kvm::AddressSpace::kNormal);
}

void Scratch::add_to(kvm::Vm& vm, kvm::AddressSpace address_space) const {
    vm.add_memslot(slot_, range(), mapping_.data(), address_space,
                   is_read_only() ? kvm::MemslotAccess::kReadOnly : kvm::MemslotAccess::kWritable);
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
    return GuestAddress{to_integer(layout_.base) + index * kSmallPageBytes};
}

GuestAddress Scratch::stub() const noexcept {
    return page(kStubPage);
}

GuestAddress Scratch::reading_stub() const noexcept {
    return GuestAddress{to_integer(page(kStubPage)) + kReadingStubOffset};
}

bool Scratch::is_end_of_stub(std::uint64_t rip) const noexcept {
    const std::uint64_t written = to_integer(stub()) + kStub.size() - kEndOfStub;
    const std::uint64_t read = to_integer(reading_stub()) + kReadingStub.size() - kEndOfStub;
    return rip == written || rip == written + 1 || rip == read || rip == read + 1;
}

GuestAddress Scratch::task_state() const noexcept {
    return GuestAddress{to_integer(page(kStubPage)) + kTaskStateOffset};
}

GuestAddress Scratch::page_tables() const noexcept {
    return page(kRootPage);
}

Scratch::Words Scratch::content_of_page(std::uint64_t index) const noexcept {
    Words words{};
    const std::uint64_t gibs = layout_.mapped_bytes / kGiB;
    const std::uint64_t first_directory_page = kFirstPointerPage + pointer_tables(layout_);
    if (index == kStubPage) {
        std::array<std::uint8_t, kSmallPageBytes> bytes{};
        static_assert(kStub.size() <= kReadingStubOffset);
        static_assert(kReadingStubOffset + kReadingStub.size() <= kTaskStateOffset);
        static_assert(kTaskStateOffset + kTaskState.size() <= kSmallPageBytes);
        std::ranges::copy(kStub, bytes.begin());
        std::ranges::copy(kReadingStub, bytes.begin() + kReadingStubOffset);
        std::ranges::copy(kTaskState, bytes.begin() + kTaskStateOffset);
        return std::bit_cast<Words>(bytes);
    }
    if (index == kRootPage) {
        for (std::uint64_t table = 0; table * kEntriesPerTable < gibs; ++table) {
            words[table] = to_integer(page(kFirstPointerPage + table)) | kTableEntry;
        }
    } else if (index < first_directory_page) {
        const std::uint64_t first_gib = (index - kFirstPointerPage) * kEntriesPerTable;
        for (std::uint64_t entry = 0; entry < kEntriesPerTable && first_gib + entry < gibs; ++entry) {
            const std::uint64_t gib = first_gib + entry;
            words[entry] = layout_.one_gib_pages ? gib * kGiB | kLeafEntry
                                                 : to_integer(page(first_directory_page + gib)) | kTableEntry;
        }
    } else {
        const std::uint64_t gib = index - first_directory_page;
        for (std::uint64_t entry = 0; entry < kEntriesPerTable; ++entry) {
            words[entry] = (gib * kGiB + entry * 2 * kMiB) | kLeafEntry;
        }
    }
    return words;
}

void Scratch::write_page(std::uint64_t index, const Words& words) noexcept {
    std::byte* const target = mapping_.data() + index * kSmallPageBytes;
    // Only words that differ are written: with shadow paging the tables may be in use, and even a write of the same
    // value must not happen.
    for (std::size_t i = 0; i < words.size(); ++i) {
        if (std::memcmp(target + i * sizeof words[i], &words[i], sizeof words[i]) != 0) {
            std::memcpy(target + i * sizeof words[i], &words[i], sizeof words[i]);
        }
    }
}

void Scratch::refresh() {
    const std::uint64_t used_pages = used_range().size / kSmallPageBytes;
    for (std::uint64_t index = 0; index < used_pages; ++index) {
        write_page(index, content_of_page(index));
    }
    const std::uint64_t used_bytes = used_pages * kSmallPageBytes;
    if (is_read_only() || used_bytes == mapping_.size()) {
        return;
    }
    // The pages after these are dropped, with anything that the guest may have written to them.
    if (::madvise(mapping_.data() + used_bytes, mapping_.size() - used_bytes, MADV_DONTNEED) != 0) {
        for (std::uint64_t index = used_pages; index < mapping_.size() / kSmallPageBytes; ++index) {
            write_page(index, Words{}); // The pages are locked: the embedding program has locked all its memory.
        }
    }
}

} // namespace vmm::prefault
