#include "kvm/host/guest_address.hpp"
#include "support/host_guest_range.hpp"

#include <gtest/gtest.h>

#include <array>
#include <vector>

namespace vmm {
namespace {

using testing::range;

__extension__ using Wide = unsigned __int128; // wide enough for the end of every range

constexpr std::uint64_t kTop = UINT64_MAX;

Wide base_of(GuestRange range) {
    return to_integer(range.base);
}
Wide end_of(GuestRange range) {
    return base_of(range) + range.size;
}

/// All ranges whose base and size are near an edge of the address space, or near its middle.
std::vector<GuestRange> edge_ranges() {
    constexpr std::array<std::uint64_t, 10> kEdges{0,    1,           4095,        4096,     1ULL << 63,
                                                   1000, kTop - 4096, kTop - 4095, kTop - 1, kTop};
    std::vector<GuestRange> ranges;
    for (const std::uint64_t base : kEdges) {
        for (const std::uint64_t size : kEdges) {
            ranges.push_back(range(base, size));
        }
    }
    return ranges;
}

TEST(GuestRange, ContainsWhatArithmeticWithoutWrappingSays) {
    for (const GuestRange outer : edge_ranges()) {
        for (const GuestRange inner : edge_ranges()) {
            const bool expected = base_of(inner) >= base_of(outer) && end_of(inner) <= end_of(outer);
            EXPECT_EQ(outer.contains(inner), expected) << to_string(outer) << " contains " << to_string(inner);
        }
    }
}

TEST(GuestRange, OverlapsWhatArithmeticWithoutWrappingSays) {
    for (const GuestRange one : edge_ranges()) {
        for (const GuestRange other : edge_ranges()) {
            const bool expected =
                one.size != 0 && other.size != 0 && base_of(one) < end_of(other) && base_of(other) < end_of(one);
            EXPECT_EQ(one.overlaps(other), expected) << to_string(one) << " overlaps " << to_string(other);
        }
    }
}

TEST(GuestRange, EmptyRangeIsInsideAtTheStartAndAtTheEnd) {
    const GuestRange outer = range(0x1000, 0x1000);
    EXPECT_TRUE(outer.contains(range(0x1000, 0)));
    EXPECT_TRUE(outer.contains(range(0x2000, 0)));
    EXPECT_FALSE(outer.contains(range(0x2001, 0)));
    EXPECT_FALSE(outer.contains(range(0xfff, 0)));
}

TEST(GuestRange, NeighboursDoNotOverlap) {
    EXPECT_FALSE(range(0, 0x1000).overlaps(range(0x1000, 0x1000)));
    EXPECT_FALSE(range(0x1000, 0x1000).overlaps(range(0, 0x1000)));
}

TEST(GuestRange, EndIsTheAddressAfterTheLastByte) {
    EXPECT_EQ(range(0x1000, 0x234).end(), GuestAddress{0x1234});
}

TEST(CheckedAdd, ReachesTheLastAddressAndNoFurther) {
    EXPECT_EQ(checked_add(GuestAddress{kTop - 1}, 1), GuestAddress{kTop});
    EXPECT_EQ(checked_add(GuestAddress{kTop}, 0), GuestAddress{kTop});
    EXPECT_FALSE(checked_add(GuestAddress{kTop}, 1));
    EXPECT_FALSE(checked_add(GuestAddress{1}, kTop));
}

TEST(Align, UpStopsAtTheEndOfTheAddressSpace) {
    EXPECT_EQ(align_up(0, 4096), 0U);
    EXPECT_EQ(align_up(1, 4096), 4096U);
    EXPECT_EQ(align_up(4096, 4096), 4096U);
    EXPECT_EQ(align_up(kTop - 4095, 4096), kTop - 4095);
    EXPECT_EQ(align_up(kTop - 4096, 4096), kTop - 4095);
    EXPECT_FALSE(align_up(kTop - 4094, 4096));
    EXPECT_FALSE(align_up(kTop, 2));
}

TEST(Align, DownKeepsMultiples) {
    EXPECT_EQ(align_down(4095, 4096), 0U);
    EXPECT_EQ(align_down(4096, 4096), 4096U);
    EXPECT_EQ(align_down(kTop, 4096), kTop - 4095);
    EXPECT_TRUE(is_aligned(0, kGiB));
    EXPECT_FALSE(is_aligned(kGiB + 1, kGiB));
}

TEST(GuestRangeText, NamesTheLastByte) {
    EXPECT_EQ(to_string(range(0x1000, 0x1000)), "0x1000-0x1fff");
    EXPECT_EQ(to_string(range(0x1000, 1)), "0x1000-0x1000");
    EXPECT_EQ(to_string(range(kTop, 1)), "0xffffffffffffffff-0xffffffffffffffff");
}

TEST(GuestRangeText, SaysThatARangeIsEmptyOrWraps) {
    EXPECT_EQ(to_string(range(0x1000, 0)), "0x1000 (empty)");
    EXPECT_EQ(to_string(range(kTop, 2)), "0xffffffffffffffff-(beyond 2^64)");
}

TEST(FormatBytes, TakesTheLargestUnitThatFits) {
    EXPECT_EQ(format_bytes(0), "0 bytes");
    EXPECT_EQ(format_bytes(1023), "1023 bytes");
    EXPECT_EQ(format_bytes(kKiB), "1 KiB");
    EXPECT_EQ(format_bytes(512 * kMiB), "512 MiB");
    EXPECT_EQ(format_bytes(3584 * kMiB), "3.50 GiB");
    EXPECT_EQ(format_bytes(16 * kTiB), "16 TiB");
    EXPECT_EQ(format_bytes(kTop), "16777216.00 TiB");
}

} // namespace
} // namespace vmm
