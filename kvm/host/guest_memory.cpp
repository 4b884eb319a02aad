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
        return kSmallPageBytes;
    case PageSize::k2M:
        return 2 * kMiB;
    case PageSize::k1G:
        return kGiB;
    }
    return kSmallPageBytes;
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

void give_advice(std::span<std::byte> memory, int advice, const char* what) {
    if (::madvise(memory.data(), memory.size(), advice) != 0) {
        throw_errno(errno, std::string("advise ") + what + " for guest memory", kAdviseAdvice);
    }
}

/// MADV_(NO)HUGEPAGE answers EINVAL if the kernel was built without transparent huge pages. There, every page is 4 KiB.
void advise_huge_pages(std::span<std::byte> memory, PageSize page_size) {
    const bool wanted = page_size == PageSize::kThp;
    if (hugetlb_flags(page_size) != 0 ||
        ::madvise(memory.data(), memory.size(), wanted ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) == 0 || errno == EINVAL) {
        return;
    }
    throw_errno(errno, wanted ? "advise huge pages for guest memory" : "advise small pages for guest memory",
                kAdviseAdvice);
}

/// A parent may have offered all memory of this process to KSM (PR_SET_MEMORY_MERGE, prctl(2)). KSM removes mappings,
/// and lets guests learn of each other. A kernel that was built without KSM answers MADV_UNMERGEABLE with EINVAL.
void keep_from_merging(std::span<std::byte> memory) {
    if (::madvise(memory.data(), memory.size(), MADV_UNMERGEABLE) != 0 && errno != EINVAL) {
        throw_errno(errno, "advise no same-page merging for guest memory", kAdviseAdvice);
    }
}

/// Huge pages of the pool are reserved at once, so that a shortage is an error now and not a SIGBUS later.
int mapping_flags(PageSize page_size) {
    return hugetlb_flags(page_size) != 0 ? hugetlb_flags(page_size) : MAP_NORESERVE;
}

std::string purpose_of(GuestRange range) {
    return "guest memory at " + to_string(range);
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

/// Checks `range` and reserves address space for its region.
Mapping GuestMemory::reserve(GuestRange range) const {
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
    return Mapping::reserve(range.size, region_alignment(), purpose_of(range));
}

void GuestMemory::advise(std::span<std::byte> bytes) const {
    advise_huge_pages(bytes, page_size_);
    give_advice(bytes, MADV_DONTFORK, "no copy on fork");
    give_advice(bytes, MADV_DONTDUMP, "no core dump");
    keep_from_merging(bytes);
}

GuestMemory::NewRegion GuestMemory::map(GuestRange range, std::span<const FilePart> parts) const {
    Mapping mapping = reserve(range);
    std::uint64_t done = 0;
    const auto make_up_to = [&](std::uint64_t end) {
        if (end > done) {
            mapping.put_anonymous(done, end - done, mapping_flags(page_size_), purpose_of(range));
        }
    };
    for (const FilePart& part : parts) {
        assert(part.offset >= done && part.offset <= range.size && part.size <= range.size - part.offset);
        make_up_to(part.offset);
        mapping.put_file(part.offset, part.fd, part.file_offset, part.size, purpose_of(range), part.sharing);
        done = part.offset + part.size;
    }
    make_up_to(range.size);
    advise(mapping.bytes());
    return {range, std::move(mapping), !parts.empty()};
}

// ---- Memory that comes and goes

GuestMemory::NewRegion GuestMemory::map_pluggable(GuestRange range, SpareFile spare) const {
    assert(spare.bytes != 0 && is_aligned(spare.bytes, 2 * kMiB));
    Mapping mapping = reserve(range);
    put_spare(mapping, 0, range.size, spare);
    return {range, std::move(mapping), false, spare};
}

/// Puts the spare file in the place of the guest's memory. The kernel unmaps a huge page of a pool only as a whole
/// (linux: hugetlb_vm_op_split). So if a piece of the file would end inside such a page, small pages replace all of the
/// memory first.
void GuestMemory::take_away(Mapping& mapping, std::uint64_t offset, std::uint64_t size, SpareFile spare) const {
    if (!is_aligned(spare.bytes, certain_page_bytes(page_size_))) {
        mapping.put_anonymous(offset, size, MAP_NORESERVE, "guest memory that is not plugged");
    }
    put_spare(mapping, offset, size, spare);
}

/// The position in the spare file follows from the offset alone, so that neighbouring pieces become one mapping.
void GuestMemory::put_spare(Mapping& mapping, std::uint64_t offset, std::uint64_t size, SpareFile spare) {
    const std::span<std::byte> bytes = mapping.bytes().subspan(offset, size);
    while (size != 0) {
        const std::uint64_t in_file = offset % spare.bytes;
        const std::uint64_t now = std::min(size, spare.bytes - in_file);
        mapping.put_file(offset, spare.fd, in_file, now, "guest memory that is not plugged");
        offset += now;
        size -= now;
    }
    give_advice(bytes, MADV_DONTFORK, "no copy on fork");
    give_advice(bytes, MADV_DONTDUMP, "no core dump");
}

std::size_t GuestMemory::pluggable(GuestRange range) const noexcept {
    const auto all = regions();
    const auto found = std::ranges::find_if(all, [&](const MemoryRegion& one) { return one.range.contains(range); });
    assert(found != all.end());
    const auto index = static_cast<std::size_t>(found - all.begin());
    assert(spares_[index].fd >= 0);
    return index;
}

void GuestMemory::plug(GuestRange range, const std::optional<FilePart>& file) {
    const std::size_t index = pluggable(range);
    Mapping& mapping = mappings_[index];
    const std::uint64_t offset = to_integer(range.base) - to_integer(regions_[index].range.base);
    try {
        if (file) {
            mapping.put_file(offset, file->fd, file->file_offset, range.size, purpose_of(range), file->sharing);
        } else {
            mapping.put_anonymous(offset, range.size, mapping_flags(page_size_), purpose_of(range));
        }
        advise(mapping.bytes().subspan(offset, range.size));
    } catch (const Error&) {
        take_away(mapping, offset, range.size, spares_[index]);
        throw;
    }
    note_write(mapping.bytes().subspan(offset, range.size)); // The content has changed.
}

void GuestMemory::unplug(GuestRange range) {
    const std::size_t index = pluggable(range);
    Mapping& mapping = mappings_[index];
    const std::uint64_t offset = to_integer(range.base) - to_integer(regions_[index].range.base);
    take_away(mapping, offset, range.size, spares_[index]);
    note_write(mapping.bytes().subspan(offset, range.size));
}

void GuestMemory::add(NewRegion region) noexcept {
    const std::size_t index = count_.load(std::memory_order_relaxed);
    assert(index < kMaxRegions);
    regions_[index] = region.region_;
    mappings_[index] = std::move(region.mapping_);
    has_files_[index] = region.has_files_;
    spares_[index] = region.spare_;
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
        // The code rounds offsets, not addresses, because a region begins and ends at a page.
        const std::uint64_t offset = start - region_start;
        const std::uint64_t first = *align_up(offset, kSmallPageBytes);
        const std::uint64_t end = align_down(offset + bytes.size(), kSmallPageBytes);
        // MADV_FREE is not used, because the pages must be gone, and be seen to be gone, at once.
        if (first >= end) {
            return true;
        }
        note_write(region.bytes().subspan(first, end - first));
        return ::madvise(region.host + first, end - first, MADV_DONTNEED) == 0;
    }
    return false;
}

} // namespace vmm
