#include "vmm/guest/text.hpp"

#include <gtest/gtest.h>

#include <string>

namespace vmm::guest {
namespace {

TEST(GuestLine, FieldsAreSeparatedBySpaces) {
    EXPECT_EQ(Line().field("a", 0).field("b", "x").text(), "a=0 b=x");
    EXPECT_EQ(Line("summary").field("max", UINT64_MAX).text(), "summary max=18446744073709551615");
}

TEST(GuestLine, HexHasNoLeadingZeros) {
    EXPECT_EQ(Line().field_hex("v", 0).text(), "v=0x0");
    EXPECT_EQ(Line().field_hex("v", 0xe0001000).text(), "v=0xe0001000");
    EXPECT_EQ(Line().field_hex("v", UINT64_MAX).text(), "v=0xffffffffffffffff");
}

TEST(GuestLine, HundredthsHaveTwoDecimals) {
    EXPECT_EQ(Line().field_hundredths("r", 103).text(), "r=1.03");
    EXPECT_EQ(Line().field_hundredths("r", 7).text(), "r=0.07");
    EXPECT_EQ(Line().field_hundredths("r", 12340).text(), "r=123.40");
}

TEST(GuestLine, BytesThatCouldBreakTheLineAreReplaced) {
    EXPECT_EQ(Line().field("value", "a b\n\x7f\xc3").text(), "value=a?b???");
}

TEST(GuestLine, WhatDoesNotFitIsCutOff) {
    const Line line = Line().field("long", std::string(2 * Line::kCapacity, 'x'));
    EXPECT_EQ(line.text(), "long=" + std::string(Line::kCapacity - 5, 'x'));
}

TEST(GuestRatio, IsRoundedToNearest) {
    EXPECT_EQ(ratio_in_hundredths(1, 1), 100U);
    EXPECT_EQ(ratio_in_hundredths(2, 3), 67U);
    EXPECT_EQ(ratio_in_hundredths(1, 3), 33U);
    EXPECT_EQ(ratio_in_hundredths(1'003, 1'000), 100U);
    EXPECT_EQ(ratio_in_hundredths(1'005, 1'000), 101U);
}

TEST(GuestRatio, NothingWraps) {
    EXPECT_EQ(ratio_in_hundredths(5, 0), 0U);
    EXPECT_EQ(ratio_in_hundredths(UINT64_MAX, UINT64_MAX), 100U);
    EXPECT_EQ(ratio_in_hundredths(UINT64_MAX - 1, UINT64_MAX), 100U);
    EXPECT_EQ(ratio_in_hundredths(UINT64_MAX / 2, UINT64_MAX), 50U);
    EXPECT_EQ(ratio_in_hundredths(UINT64_MAX, 1), UINT64_MAX);
}

} // namespace
} // namespace vmm::guest
