#include "kvm/host/write_log.hpp"

#include <algorithm>

#include "kvm/host/guest_memory.hpp"

namespace vmm {

namespace {

constexpr std::uint64_t kBits = 64;

} // namespace

WriteLog::WriteLog(std::span<const MemoryRegion> regions) {
    for (const MemoryRegion& region : regions) {
        const std::uint64_t pages = (region.range.size + kPageBytes - 1) / kPageBytes;
        regions_.push_back(
            {region.range, region.host, std::vector<std::atomic<std::uint64_t>>((pages + kBits - 1) / kBits)});
    }
}

void WriteLog::mark(Region& region, std::uint64_t offset, std::uint64_t bytes) noexcept {
    const std::uint64_t last = (offset + bytes - 1) / kPageBytes;
    for (std::uint64_t page = offset / kPageBytes; page <= last;) {
        // All pages of one word are marked at once.
        const std::uint64_t first_bit = page % kBits;
        const std::uint64_t count = std::min(kBits - first_bit, last - page + 1);
        const std::uint64_t mask = (count == kBits ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1) << first_bit;
        std::atomic<std::uint64_t>& word = region.words[page / kBits];
        if ((word.load(std::memory_order_relaxed) & mask) != mask) {
            word.fetch_or(mask, std::memory_order_relaxed);
        }
        page += count;
    }
}

void WriteLog::mark(std::span<const std::byte> bytes) noexcept {
    if (bytes.empty()) {
        return;
    }
    const auto start = reinterpret_cast<std::uintptr_t>(bytes.data());
    for (Region& region : regions_) {
        const auto host = reinterpret_cast<std::uintptr_t>(region.host);
        if (start >= host && start - host < region.range.size) {
            const std::uint64_t offset = start - host;
            mark(region, offset, std::min<std::uint64_t>(bytes.size(), region.range.size - offset));
            return;
        }
    }
}

void WriteLog::mark(GuestRange range) noexcept {
    for (Region& region : regions_) {
        if (region.range.overlaps(range)) {
            const std::uint64_t base = to_integer(region.range.base);
            const std::uint64_t begin = std::max(base, to_integer(range.base));
            // `range` may wrap, but the end of a region does not.
            const std::uint64_t end = base + region.range.size;
            mark(region, begin - base, std::min(range.size - (begin - to_integer(range.base)), end - begin));
        }
    }
}

std::vector<std::uint64_t> WriteLog::take(std::size_t index) {
    std::vector<std::uint64_t> marks;
    for (std::atomic<std::uint64_t>& word : regions_.at(index).words) {
        marks.push_back(word.exchange(0, std::memory_order_relaxed));
    }
    return marks;
}

} // namespace vmm
