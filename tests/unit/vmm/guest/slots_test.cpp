#include "vmm/guest/slots.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace vmm::guest {
namespace {

constexpr std::uint64_t kPageBytes = 4096;

MemoryRanges three_ranges() {
    MemoryRanges memory;
    EXPECT_TRUE(memory.add({0x100000, 0x105000}));
    EXPECT_TRUE(memory.add({0x200000, 0x201000}));
    EXPECT_TRUE(memory.add({0x3ff000, 0x602000}));
    return memory;
}

std::vector<std::uint64_t> visited(const Slots& slots, Share share) {
    std::vector<std::uint64_t> addresses;
    slots.for_each(share, [&](std::uint64_t address) { addresses.push_back(address); });
    return addresses;
}

TEST(GuestShares, CoverAllWithoutOverlap) {
    for (const std::uint64_t slots : {0ULL, 1ULL, 7ULL, 253ULL, 65'536ULL, (1ULL << 40) + 17}) {
        for (const std::uint64_t shares : {1ULL, 2ULL, 3ULL, 254ULL}) {
            std::uint64_t next = 0;
            for (std::uint64_t i = 0; i < shares; ++i) {
                const Share share = share_of(slots, i, shares);
                EXPECT_EQ(share.first, next);
                EXPECT_LE(share.count, (slots / shares) + 1);
                EXPECT_GE(share.count, slots / shares);
                next += share.count;
            }
            EXPECT_EQ(next, slots);
        }
    }
}

TEST(GuestSlots, OnePerPage) {
    const Slots slots(three_ranges(), kPageBytes);
    EXPECT_EQ(slots.count(), 5U + 1U + 0x203U);
    EXPECT_EQ(visited(slots, {3, 4}), (std::vector<std::uint64_t>{0x103000, 0x104000, 0x200000, 0x3ff000}));
}

TEST(GuestSlots, LargeStrideReachesEachBlockThatARangeHasAPartOf) {
    const Slots slots(three_ranges(), 0x200000);
    // If the start is inside a block, it is that block's slot; later slots are the starts of blocks.
    EXPECT_EQ(visited(slots, {0, slots.count()}),
              (std::vector<std::uint64_t>{0x100000, 0x200000, 0x3ff000, 0x400000, 0x600000}));
}

TEST(GuestSlots, StrideNeedNotBeAPowerOfTwo) {
    const Slots slots(three_ranges(), 0x3000);
    for (const std::uint64_t address : visited(slots, {0, slots.count()})) {
        EXPECT_TRUE(address % 0x3000 == 0 || address == 0x100000 || address == 0x200000 || address == 0x3ff000);
    }
}

TEST(GuestSlots, WalkingAndLookingUpAgree) {
    for (const std::uint64_t stride : {kPageBytes, 3 * kPageBytes, std::uint64_t{0x200000}}) {
        const Slots slots(three_ranges(), stride);
        const auto walked = visited(slots, {0, slots.count()});
        ASSERT_EQ(walked.size(), slots.count());
        for (std::uint64_t i = 0; i < slots.count(); ++i) {
            EXPECT_EQ(slots.address(i), walked[i]);
        }
    }
}

TEST(GuestSlots, SharesTogetherVisitEverySlotOnce) {
    const Slots slots(three_ranges(), kPageBytes);
    std::vector<std::uint64_t> together;
    for (std::uint64_t i = 0; i < 7; ++i) {
        const auto part = visited(slots, share_of(slots.count(), i, 7));
        together.insert(together.end(), part.begin(), part.end());
    }
    EXPECT_EQ(together, visited(slots, {0, slots.count()}));
}

TEST(GuestSlots, EmptyShareVisitsNothing) {
    const Slots slots(three_ranges(), kPageBytes);
    EXPECT_TRUE(visited(slots, {3, 0}).empty());
    EXPECT_TRUE(visited(slots, {slots.count(), 0}).empty());
    EXPECT_TRUE(visited(Slots(), {0, 0}).empty());
}

} // namespace
} // namespace vmm::guest
