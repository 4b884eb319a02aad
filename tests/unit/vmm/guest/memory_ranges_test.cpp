#include "vmm/guest/memory_ranges.hpp"

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <vector>

namespace vmm::guest {
namespace {

constexpr std::uint64_t kPage = 4096;

std::vector<Range> list(const MemoryRanges& ranges) {
    return {ranges.ranges().begin(), ranges.ranges().end()};
}

MemoryRanges with(std::initializer_list<Range> added) {
    MemoryRanges ranges;
    for (const Range& range : added) {
        EXPECT_TRUE(ranges.add(range));
    }
    return ranges;
}

TEST(GuestMemoryRanges, OnlyWholePagesAreAdded) {
    EXPECT_EQ(list(with({{1, (3 * kPage) - 1}})), (std::vector<Range>{{kPage, 2 * kPage}}));
    EXPECT_TRUE(list(with({{1, (2 * kPage) - 1}})).empty());
    EXPECT_TRUE(list(with({{UINT64_MAX - 5, UINT64_MAX}})).empty());
}

TEST(GuestMemoryRanges, NeighboursAndOverlapsMelt) {
    EXPECT_EQ(list(with({{8 * kPage, 9 * kPage}, {0, kPage}, {4 * kPage, 5 * kPage}, {kPage, 8 * kPage}})),
              (std::vector<Range>{{0, 9 * kPage}}));
}

TEST(GuestMemoryRanges, RemovingTakesEveryPageTouched) {
    MemoryRanges ranges = with({{0, 10 * kPage}});
    EXPECT_TRUE(ranges.remove({(3 * kPage) + 1, (4 * kPage) + 1}));
    EXPECT_EQ(list(ranges), (std::vector<Range>{{0, 3 * kPage}, {5 * kPage, 10 * kPage}}));
}

TEST(GuestMemoryRanges, RemovingReachesAcrossRanges) {
    MemoryRanges ranges = with({{0, 2 * kPage}, {4 * kPage, 6 * kPage}, {8 * kPage, 10 * kPage}});
    EXPECT_TRUE(ranges.remove({kPage, 9 * kPage}));
    EXPECT_EQ(list(ranges), (std::vector<Range>{{0, kPage}, {9 * kPage, 10 * kPage}}));
    EXPECT_TRUE(ranges.remove({0, UINT64_MAX}));
    EXPECT_TRUE(list(ranges).empty());
}

TEST(GuestMemoryRanges, EmptyAndUpsideDownRangesChangeNothing) {
    MemoryRanges ranges = with({{0, 4 * kPage}});
    EXPECT_TRUE(ranges.remove({kPage, kPage}));
    EXPECT_TRUE(ranges.remove({2 * kPage, kPage}));
    EXPECT_TRUE(ranges.add({9 * kPage, 8 * kPage}));
    EXPECT_EQ(list(ranges), (std::vector<Range>{{0, 4 * kPage}}));
}

TEST(GuestMemoryRanges, FullListRefusesAndStaysAsItIs) {
    MemoryRanges ranges;
    for (std::uint64_t i = 0; i < MemoryRanges::kCapacity; ++i) {
        ASSERT_TRUE(ranges.add({8 * i * kPage, (8 * i + 4) * kPage}));
    }
    const auto before = list(ranges);
    EXPECT_FALSE(ranges.add({1'000'000 * kPage, 1'000'001 * kPage}));
    EXPECT_FALSE(ranges.remove({kPage, 2 * kPage})); // would cut one into two
    EXPECT_EQ(list(ranges), before);
    EXPECT_TRUE(ranges.remove({0, kPage}));
}

TEST(GuestMemoryRanges, TakesFromAsHighAsItMay) {
    MemoryRanges ranges = with({{0, 8 * kPage}, {16 * kPage, 32 * kPage}});
    EXPECT_EQ(ranges.take(2 * kPage, UINT64_MAX), 30 * kPage);
    EXPECT_EQ(ranges.take(2 * kPage, 20 * kPage), 18 * kPage); // out of the middle
    EXPECT_EQ(ranges.take(3 * kPage, 20 * kPage), 5 * kPage);  // two pages are left from 16 on
    EXPECT_EQ(ranges.take(100 * kPage, UINT64_MAX), std::nullopt);
    EXPECT_EQ(ranges.bytes(), 17 * kPage);
}

TEST(GuestMemoryRanges, AgreesWithASetOfPages) {
    std::mt19937_64 random(1); // NOLINT(cert-msc32-c,cert-msc51-cpp): the same numbers in every run.
    for (int round = 0; round < 200; ++round) {
        MemoryRanges ranges;
        std::set<std::uint64_t> pages;
        for (int step = 0; step < 40; ++step) {
            const std::uint64_t base = random() % 200;
            const std::uint64_t end = base + (random() % 20);
            const bool add = random() % 2 == 0;
            ASSERT_TRUE(add ? ranges.add({base * kPage, end * kPage}) : ranges.remove({base * kPage, end * kPage}));
            for (std::uint64_t page = base; page < end; ++page) {
                if (add) {
                    pages.insert(page);
                } else {
                    pages.erase(page);
                }
            }
        }
        std::set<std::uint64_t> held;
        std::uint64_t last_end = 0;
        for (const Range& range : ranges.ranges()) {
            EXPECT_TRUE(range.base > last_end || held.empty()) << "neighbours must melt";
            EXPECT_LT(range.base, range.end);
            last_end = range.end;
            for (std::uint64_t page = range.base / kPage; page < range.end / kPage; ++page) {
                held.insert(page);
            }
        }
        ASSERT_EQ(held, pages);
    }
}

TEST(GuestRam, WindowCutsAndOtherTypesWin) {
    const std::vector<MemoryMapEntry> map{
        {0, 0xa0000, 1, 0},
        {0x100000, 0x400000, 1, 0},
        {0x200000, 0x1800, 2, 0}, // Reserved, inside RAM, half a page at its end.
        {0x600000, 0x1000, 3, 0},
    };
    const auto ram = ram_within(map, {0x100000, 0x480000});
    ASSERT_TRUE(ram);
    EXPECT_EQ(list(*ram), (std::vector<Range>{{0x100000, 0x200000}, {0x202000, 0x480000}}));
}

TEST(GuestRam, EntryThatWrapsIsCutOff) {
    const std::vector<MemoryMapEntry> map{{0x100000, UINT64_MAX, 1, 0}, {UINT64_MAX - 1, UINT64_MAX, 2, 0}};
    const auto ram = ram_within(map, {0x100000, 0x40000000});
    ASSERT_TRUE(ram);
    EXPECT_EQ(list(*ram), (std::vector<Range>{{0x100000, 0x40000000}}));
}

} // namespace
} // namespace vmm::guest
