#include "support/host_guest_range.hpp"
#include "vmm/cli/values.hpp"

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

namespace vmm {
namespace {

using testing::range;

using Ranges = std::vector<GuestRange>;

TEST(SizeText, IsANumberAndAUnit) {
    EXPECT_EQ(parse_size("0"), 0U);
    EXPECT_EQ(parse_size("4096"), 4096U);
    EXPECT_EQ(parse_size("512M"), 512 * kMiB);
    EXPECT_EQ(parse_size("64K"), 64 * kKiB);
    EXPECT_EQ(parse_size("3G"), 3 * kGiB);
    EXPECT_EQ(parse_size("16T"), 16 * kTiB);
}

TEST(SizeText, TakesUnitsInEverySpelling) {
    for (const char* const text : {"2g", "2G", "2GB", "2gb", "2GiB", "2gib", "2GIB"}) {
        EXPECT_EQ(parse_size(text), 2 * kGiB) << text;
    }
}

TEST(SizeText, ReachesTheLargestNumber) {
    EXPECT_EQ(parse_size("18446744073709551615"), UINT64_MAX);
    EXPECT_EQ(parse_size("16777215T"), 16777215 * kTiB);
}

class NoSize : public ::testing::TestWithParam<const char*> {};

TEST_P(NoSize, IsRefused) {
    EXPECT_EQ(parse_size(GetParam()), std::nullopt);
}

INSTANTIATE_TEST_SUITE_P(Texts, NoSize,
                         ::testing::Values("", " ", "M", "-1", "+1", "1.5G", " 1G", "1G ", "1 G", "1GG", "1GBB", "1Gi",
                                           "1iB", "1P", "0x10", "1G\n", "18446744073709551616", "16777216T",
                                           "18014398509481984K"));

TEST(RangesText, IsPairsOfAddresses) {
    EXPECT_EQ(parse_ranges("0-1G"), (Ranges{range(0, kGiB)}));
    EXPECT_EQ(parse_ranges("0-1G,4G-6G"), (Ranges{range(0, kGiB), range(4 * kGiB, 2 * kGiB)}));
    EXPECT_EQ(parse_ranges("4096-8192"), (Ranges{range(4096, 4096)}));
}

TEST(RangesText, TakesHexadecimalAddresses) {
    EXPECT_EQ(parse_ranges("0x100000-0x200000"), (Ranges{range(kMiB, kMiB)}));
    EXPECT_EQ(parse_ranges("0XfF000-1M"), (Ranges{range(0xff000, 4096)}));
}

TEST(RangesText, KeepsTheOrderAndSaysNothingOfWhatOverlaps) {
    EXPECT_EQ(parse_ranges("4G-5G,0-1G,0-1G"), (Ranges{range(4 * kGiB, kGiB), range(0, kGiB), range(0, kGiB)}));
}

TEST(RangesText, ReachesTheTopOfTheAddressSpace) {
    EXPECT_EQ(parse_ranges("0-0xffffffffffffffff"), (Ranges{range(0, UINT64_MAX)}));
}

class NoRanges : public ::testing::TestWithParam<const char*> {};

TEST_P(NoRanges, AreRefused) {
    EXPECT_EQ(parse_ranges(GetParam()), std::nullopt);
}

INSTANTIATE_TEST_SUITE_P(Texts, NoRanges,
                         ::testing::Values("", ",", "-", "1G", "1G-", "-1G", "1G-0", "1G-1G", "0-0", "0-1G,", ",0-1G",
                                           "0-1G,,4G-5G", "0-1G-2G", "0--1G", "0-1G 4G-5G", "0-1G, 4G-5G", "0x-0x10",
                                           "0x10-0x", "0xg-0xh", "0x0-0x10000000000000000", "all", "0..1G", "0-1.5G",
                                           "0-0x1000K"));

TEST(SizeText, IsWhatParseSizeUnderstands) {
    EXPECT_EQ(size_text(512 * kMiB), "512M");
    EXPECT_EQ(size_text(3 * kGiB), "3G");
    EXPECT_EQ(size_text(2000), "2000");
    EXPECT_EQ(size_text(0), "0");
    EXPECT_EQ(size_text(UINT64_MAX), "18446744073709551615");
    for (const std::uint64_t bytes : {kKiB, 65 * kKiB, 1536 * kMiB, 2048 * kTiB}) {
        EXPECT_EQ(parse_size(size_text(bytes)), bytes);
    }
}

} // namespace
} // namespace vmm
