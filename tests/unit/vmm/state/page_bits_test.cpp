#include "vmm/state/page_bits.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

namespace vmm {
namespace {

constexpr std::uint64_t kBitsPage = WriteLog::kPageBytes;

std::array<MemoryRegion, 2> regions_of(std::uint64_t first_pages, std::uint64_t second_pages) {
    return {MemoryRegion{{GuestAddress{0}, first_pages * kBitsPage}},
            MemoryRegion{{GuestAddress{4 * kGiB}, second_pages * kBitsPage}}};
}

std::vector<std::uint64_t> set_page_numbers(const std::vector<std::uint64_t>& pages) {
    std::vector<std::uint64_t> numbers;
    for (std::uint64_t page = 0; page < pages.size() * 64; ++page) {
        if (is_set(pages, page)) {
            numbers.push_back(page);
        }
    }
    return numbers;
}

TEST(PageBits, PagesAreThoseOfTheRangesAndNoneBeyond) {
    const auto regions = regions_of(130, 64);
    const PageBits pages = pages_of(regions, std::array{GuestRange{GuestAddress{0}, 2 * kBitsPage},
                                                        GuestRange{GuestAddress{129 * kBitsPage}, kBitsPage},
                                                        GuestRange{GuestAddress{4 * kGiB}, 64 * kBitsPage}});
    ASSERT_EQ(pages.size(), 2U);
    EXPECT_EQ(pages[0], (std::vector<std::uint64_t>{3, 0, 2}));
    EXPECT_EQ(pages[1], std::vector{~std::uint64_t{0}});
    EXPECT_EQ(bytes_of(pages), 67 * kBitsPage);
}

TEST(PageBits, NoPagesHaveRoomForAll) {
    const auto regions = regions_of(65, 1);
    const PageBits pages = no_pages(regions);
    ASSERT_EQ(pages.size(), 2U);
    EXPECT_EQ(pages[0].size(), 2U);
    EXPECT_EQ(pages[1].size(), 1U);
    EXPECT_EQ(bytes_of(pages), 0U);
}

TEST(PageBits, RunsOfAnyPlaceAreSetAndCleared) {
    for (const std::uint64_t first : {0U, 1U, 62U, 63U, 64U, 65U, 127U}) {
        for (const std::uint64_t count : {0U, 1U, 2U, 63U, 64U, 65U, 129U}) {
            std::vector<std::uint64_t> pages(5);
            set_pages(pages, first, count, true);
            std::vector<std::uint64_t> wanted;
            for (std::uint64_t page = first; page < first + count; ++page) {
                wanted.push_back(page);
            }
            EXPECT_EQ(set_page_numbers(pages), wanted) << first << " and " << count;

            std::vector<std::uint64_t> rest(5, ~std::uint64_t{0});
            set_pages(rest, first, count, false);
            for (std::size_t word = 0; word < pages.size(); ++word) {
                EXPECT_EQ(rest[word], ~pages[word]) << first << " and " << count;
            }
        }
    }
}

TEST(PageBits, JoinedIsWhatIsSetInEither) {
    const auto regions = regions_of(100, 10);
    PageBits pages = no_pages(regions);
    PageBits others = pages;
    set_pages(pages[0], 3, 2, true);
    set_pages(others[0], 4, 60, true);
    set_pages(others[1], 9, 1, true);
    join(pages, others);
    EXPECT_EQ(bytes_of(pages), 62 * kBitsPage);
    EXPECT_EQ(set_page_numbers(pages[1]), std::vector<std::uint64_t>{9});
}

TEST(PageBits, ARegionThatOnlyOneHasIsLeftOut) {
    const auto regions = regions_of(1, 1);
    PageBits pages = no_pages(regions);
    join(pages, PageBits{{1}});
    EXPECT_EQ(bytes_of(pages), kBitsPage);
    PageBits one{{0}};
    join(one, PageBits{{1}, {1}});
    EXPECT_EQ(one, PageBits{{1}});
}

TEST(PageBits, EveryByteIsLookedAtForZero) {
    std::vector<std::byte> page(kBitsPage);
    EXPECT_TRUE(is_zero(page));
    EXPECT_TRUE(is_zero({}));
    for (std::byte& byte : page) {
        byte = std::byte{0x80};
        EXPECT_FALSE(is_zero(page));
        byte = std::byte{0};
    }
    std::vector<std::byte> short_one(8);
    EXPECT_TRUE(is_zero(short_one));
    short_one[7] = std::byte{1};
    EXPECT_FALSE(is_zero(short_one));
}

TEST(PageBits, RunsAreToldInOrder) {
    using Run = std::pair<std::uint64_t, std::uint64_t>;
    std::vector<std::uint64_t> pages(1);
    set_pages(pages, 0, 1, true);
    set_pages(pages, 2, 3, true);
    set_pages(pages, 7, 1, true);
    std::vector<Run> runs;
    const auto take = [&](std::uint64_t begin, std::uint64_t bytes) { runs.emplace_back(begin, bytes); };
    const auto is_wanted = [&](std::uint64_t page) { return is_set(pages, page); };
    for_each_run(8 * kBitsPage, is_wanted, take);
    EXPECT_EQ(runs, (std::vector<Run>{{0, kBitsPage}, {2 * kBitsPage, 3 * kBitsPage}, {7 * kBitsPage, kBitsPage}}));

    runs.clear();
    for_each_run(0, is_wanted, take);
    EXPECT_TRUE(runs.empty());
    for_each_run(
        kBitsPage + 8, [](std::uint64_t) { return true; }, take); // the last page is incomplete
    EXPECT_EQ(runs, (std::vector<Run>{{0, kBitsPage + 8}}));
}

} // namespace
} // namespace vmm
