#include "vmm/state/page_bits.hpp"

#include <bit>
#include <cstring>
#include <functional>

// ThreadSanitizer checks memcpy() everywhere, so the copy is a loop of its own there.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define VMM_NOT_WATCHED __attribute__((no_sanitize("thread"), no_builtin))
#define VMM_HAS_WATCHER
#endif
#endif
#ifndef VMM_NOT_WATCHED
#define VMM_NOT_WATCHED
#endif

namespace vmm {

namespace {

constexpr std::uint64_t kPagesPerWord = 64;

using AnyWord [[gnu::may_alias]] = std::uint64_t;

std::size_t words_of(const MemoryRegion& region) {
    const std::uint64_t pages = (region.range.size + WriteLog::kPageBytes - 1) / WriteLog::kPageBytes;
    return static_cast<std::size_t>((pages + kPagesPerWord - 1) / kPagesPerWord);
}

} // namespace

PageBits no_pages(std::span<const MemoryRegion> regions) {
    PageBits pages;
    for (const MemoryRegion& region : regions) {
        pages.emplace_back(words_of(region));
    }
    return pages;
}

PageBits pages_of(std::span<const MemoryRegion> regions, std::span<const GuestRange> ranges) {
    PageBits pages = no_pages(regions);
    for (const GuestRange& range : ranges) {
        for (std::size_t i = 0; i < pages.size(); ++i) {
            if (regions[i].range.contains(range)) {
                set_pages(pages[i], (to_integer(range.base) - to_integer(regions[i].range.base)) / WriteLog::kPageBytes,
                          range.size / WriteLog::kPageBytes, true);
            }
        }
    }
    return pages;
}

void set_pages(std::vector<std::uint64_t>& pages, std::uint64_t first, std::uint64_t count, bool on) noexcept {
    while (count != 0) {
        const std::uint64_t bit = first % kPagesPerWord;
        const std::uint64_t here = std::min(count, kPagesPerWord - bit);
        const std::uint64_t mask = (here == kPagesPerWord ? ~std::uint64_t{0} : (std::uint64_t{1} << here) - 1) << bit;
        std::uint64_t& word = pages[static_cast<std::size_t>(first / kPagesPerWord)];
        word = on ? word | mask : word & ~mask;
        first += here;
        count -= here;
    }
}

void join(std::vector<std::uint64_t>& pages, const std::vector<std::uint64_t>& others) noexcept {
    std::ranges::transform(pages, others, pages.begin(), std::bit_or<>());
}

void join(PageBits& pages, const PageBits& others) {
    for (std::size_t i = 0; i < std::min(pages.size(), others.size()); ++i) {
        join(pages[i], others[i]);
    }
}

std::uint64_t bytes_of(const PageBits& pages) noexcept {
    std::uint64_t count = 0;
    for (const std::vector<std::uint64_t>& region : pages) {
        for (const std::uint64_t word : region) {
            count += static_cast<std::uint64_t>(std::popcount(word));
        }
    }
    return count * WriteLog::kPageBytes;
}

VMM_NOT_WATCHED bool is_zero(std::span<const std::byte> bytes) noexcept {
    std::uint64_t any = 0;
    for (std::size_t i = 0; i + sizeof(any) <= bytes.size(); i += 64) {
        for (std::size_t j = i; j < std::min<std::size_t>(i + 64, bytes.size()); j += sizeof(any)) {
            // This is in bounds, and aligned as the header says; the type may stand for any bytes.
            any |= *reinterpret_cast<const AnyWord*>(bytes.data() + j);
        }
        if (any != 0) {
            return false;
        }
    }
    return any == 0;
}

VMM_NOT_WATCHED void copy_live(std::span<std::byte> to, std::span<const std::byte> from) noexcept {
#ifdef VMM_HAS_WATCHER
    std::byte* out = to.data();
    for (const std::byte* in = from.data(), * const end = in + from.size(); in != end; ++in) {
        *out++ = *in;
    }
#else
    std::memcpy(to.data(), from.data(), from.size());
#endif
}

} // namespace vmm
