#include "kvm/host/text.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace vmm {
namespace {

using Words = std::vector<std::string>;

TEST(Text, WordsAreJoinedWithSomethingBetween) {
    EXPECT_EQ(joined(Words{}), "");
    EXPECT_EQ(joined(Words{"one"}), "one");
    EXPECT_EQ(joined(Words{"one", "", "three"}, "|"), "one||three");
}

TEST(Text, SplitKeepsEmptyWords) {
    EXPECT_EQ(split("one,two", ','), (Words{"one", "two"}));
    EXPECT_EQ(split(",", ','), (Words{"", ""}));
    EXPECT_EQ(split("", ','), Words{""});
}

TEST(Text, OnlyLettersOfAsciiGetSmall) {
    EXPECT_EQ(lower_case("Ab-Z[\xc3\x84"), "ab-z[\xc3\x84");
}

TEST(Text, WhatATerminalWouldObeyIsNotShown) {
    EXPECT_EQ(shown("a\x1b[2Jb\n\x7f\xff"), "a?[2Jb???");
    EXPECT_EQ(shown("abcdef", 3), "abc...");
}

} // namespace
} // namespace vmm
