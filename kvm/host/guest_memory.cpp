#include "kvm/host/guest_memory.hpp"

#include <linux/mman.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cerrno>
#include <string>

#include "kvm/host/error.hpp"
#include "kvm/host/write_log.hpp"

namespace vmm {

std::string_view to_string(PageSize page_size) noexcept {
    switch (page_size) {
    case PageSize::k4K:
        return "4K";
    case PageSize::kThp:
        return "thp";
    case PageSize::k2M:
        return "2M";
    case PageSize::k1G:
        return "1G";
    }
    return "?";
}

std::uint64_t certain_page_bytes(PageSize page_size) noexcept {
    switch (page_size) {
    case PageSize::k4K:
    case PageSize::kThp:
        return 4 * kKiB;
    case PageSize::k2M:
        return 2 * kMiB;
    case PageSize::k1G:
        return kGiB;
    }
    return 4 * kKiB;
}

std::uint64_t largest_page_bytes(PageSize page_size) noexcept {
    return page_size == PageSize::kThp ? 2 * kMiB : certain_page_bytes(page_size);
}

namespace {

int hugetlb_flags(PageSize page_size) {
    switch (page_size) {
    case PageSize::k4K:
    case PageSize::kThp:
        break;
    case PageSize::k2M:
        return MAP_HUGETLB | MAP_HUGE_2MB;
    case PageSize::k1G:
        return MAP_HUGETLB | MAP_HUGE_1GB;
    }
    return 0;
}

constexpr std::array kAdviseAdvice{
    ErrnoAdvice{ENOMEM, "the kernel is short of memory, or this process of mappings: see vm.max_map_count"},
    ErrnoAdvice{EINVAL, "this kernel does not know that advice: a newer one is needed"}};

void advise(std::span<std::byte> memory, int advice, const char* what) {
    if (::madvise(memory.data(), memory.size(), advice) != 0) {
        throw_errno(errno, std::string("advise ") + what + " for guest memory", kAdviseAdvice);
    }
}

/// MADV_(NO)HUGEPAGE answers EINVAL on a kernel built without transparent huge pages; there, every page is 4 KiB.
void advise_huge_pages(std::span<std::byte> memory, PageSize page_size) {
    const bool wanted = page_size == PageSize::kThp;
    if (hugetlb_flags(page_size) != 0 ||
        ::madvise(memory.data(), memory.size(), wanted ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) == 0 || errno == EINVAL) {
        return;
    }
    throw_errno(errno, wanted ? "advise huge pages for guest memory" : "advise small pages for guest memory",
                kAdviseAdvice);
}

} // namespace

GuestMemory::GuestMemory(std::span<const GuestRange> layout, PageSize page_size) : page_size_(page_size) {
    for (const GuestRange& range : layout) {
        add(map(range));
    }
}

GuestMemory::GuestMemory(std::span<const MemoryRegion> loans, PageSize page_size) : page_size_(page_size) {
    if (loans.size() > kMaxRegions) {
        throw Error("cannot use " + std::to_string(loans.size()) + " regions of guest memory: at most " +
                    std::to_string(kMaxRegions) + " are possible");
    }
    std::ranges::copy(loans, regions_.begin());
    count_.store(loans.size(), std::memory_order_release);
}

std::uint64_t GuestMemory::region_alignment() const noexcept {
    return std::max(2 * kMiB, largest_page_bytes(page_size_));
}

GuestMemory::NewRegion GuestMemory::map(GuestRange range, std::span<const FilePart> parts) const {
    const std::string tried = "cannot make guest memory at " + to_string(range) + " of " + format_bytes(range.size);
    const std::uint64_t page_bytes = certain_page_bytes(page_size_);
    if (range.size == 0 || !is_aligned(range.size, page_bytes)) {
        throw Error(tried + ": its size must be a multiple of the page size, " + format_bytes(page_bytes));
    }
    if (range.size > UINT64_MAX - to_integer(range.base)) {
        throw Error(tried + ": it passes the end of the address space");
    }
    if (!is_aligned(to_integer(range.base), region_alignment())) {
        throw Error(tried + ": it must begin at a multiple of " + format_bytes(region_alignment()));
    }
    if (regions().size() == kMaxRegions) {
        throw Error(tried + ": there are " + std::to_string(kMaxRegions) +
                    " regions already, and no more are possible");
    }
    for (const MemoryRegion& region : regions()) {
        if (region.range.overlaps(range)) {
            throw Error(tried + ": there is memory at " + to_string(region.range) + " already");
        }
    }
    const std::string purpose = "guest memory at " + to_string(range);
    Mapping mapping = Mapping::reserve(range.size, region_alignment(), purpose);
    std::uint64_t done = 0;
    const auto make_up_to = [&](std::uint64_t end) {
        // Huge pages of the pool are reserved here, so that a shortage is an error now and not a SIGBUS later.
        const int flags = hugetlb_flags(page_size_) != 0 ? hugetlb_flags(page_size_) : MAP_NORESERVE;
        if (end > done) {
            mapping.put_anonymous(done, end - done, flags, purpose);
        }
    };
    for (const FilePart& part : parts) {
        assert(part.offset >= done && part.offset <= range.size && part.size <= range.size - part.offset);
        make_up_to(part.offset);
        mapping.put_file(part.offset, part.fd, part.file_offset, part.size, purpose, part.sharing);
        done = part.offset + part.size;
    }
    make_up_to(range.size);
    advise_huge_pages(mapping.bytes(), page_size_);
    advise(mapping.bytes(), MADV_DONTFORK, "no copy on fork");
    advise(mapping.bytes(), MADV_DONTDUMP, "no core dump");
    return {range, std::move(mapping), !parts.empty()};
}

void GuestMemory::add(NewRegion region) noexcept {
    const std::size_t index = count_.load(std::memory_order_relaxed);
    assert(index < kMaxRegions);
    regions_[index] = region.region_;
    mappings_[index] = std::move(region.mapping_);
    has_files_[index] = region.has_files_;
    count_.store(index + 1, std::memory_order_release);
}

std::uint64_t GuestMemory::size_bytes() const noexcept {
    std::uint64_t total = 0;
    for (const MemoryRegion& region : regions()) {
        total += region.range.size;
    }
    return total;
}

std::optional<std::span<std::byte>> GuestMemory::at(GuestRange range) const noexcept {
    const MemoryRegion* const region = find(range);
    if (region == nullptr) {
        return std::nullopt;
    }
    return region->bytes().subspan(to_integer(range.base) - to_integer(region->range.base), range.size);
}

bool GuestMemory::copy_out(GuestAddress address, std::span<std::byte> out) const noexcept {
    const auto source = at({address, out.size()});
    if (!source) {
        return false;
    }
    std::copy(source->begin(), source->end(), out.begin());
    return true;
}

bool GuestMemory::copy_in(GuestAddress address, std::span<const std::byte> in) const noexcept {
    const auto target = at({address, in.size()});
    if (!target) {
        return false;
    }
    note_write(*target);
    std::ranges::copy(in, target->begin());
    return true;
}

void GuestMemory::mark(WriteLog& log, std::span<const std::byte> bytes) noexcept {
    log.mark(bytes);
}

bool GuestMemory::discard(std::span<std::byte> bytes) const noexcept {
    if (is_from_pool(page_size_)) {
        return false;
    }
    const auto start = reinterpret_cast<std::uintptr_t>(bytes.data());
    const auto all = regions();
    for (std::size_t i = 0; i < all.size(); ++i) {
        const MemoryRegion& region = all[i];
        const auto region_start = reinterpret_cast<std::uintptr_t>(region.host);
        if (start < region_start || start - region_start > region.range.size ||
            bytes.size() > region.range.size - (start - region_start)) {
            continue;
        }
        if (has_files_[i]) {
            return false;
        }
        // Offsets, not addresses, are rounded: a region begins and ends at a page.
        const std::uint64_t offset = start - region_start;
        const std::uint64_t first = *align_up(offset, 4 * kKiB);
        const std::uint64_t end = align_down(offset + bytes.size(), 4 * kKiB);
        // Not MADV_FREE: the pages are to be gone, and to be seen as gone, now.
        if (first >= end) {
            return true;
        }
        note_write(region.bytes().subspan(first, end - first));
        return ::madvise(region.host + first, end - first, MADV_DONTNEED) == 0;
    }
    return false;
}

} // namespace vmm
