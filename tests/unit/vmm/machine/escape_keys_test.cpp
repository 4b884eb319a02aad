#include "vmm/machine/escape_keys.hpp"

#include <gtest/gtest.h>

#include <string>
#include <string_view>

namespace vmm {
namespace {

/// A filter's result for keys: the keys for the guest, then commands in brackets.
std::string typed(EscapeKeys& keys, std::string_view text) {
    const EscapeKeys::Result result = keys.filter(std::as_bytes(std::span{text}));
    std::string said;
    for (const std::byte key : result.for_guest) {
        said += static_cast<char>(key);
    }
    return said + (result.stop ? "[stop]" : "") + (result.help ? "[help]" : "");
}

std::string typed(std::string_view text) {
    EscapeKeys keys;
    return typed(keys, text);
}

TEST(EscapeKeys, PassOrdinaryKeysToTheGuest) {
    EXPECT_EQ(typed("ls -l\r"), "ls -l\r");
    EXPECT_EQ(typed(std::string_view("\0\x03\x7f\xff", 4)), std::string("\0\x03\x7f\xff", 4));
    EXPECT_EQ(typed(""), "");
}

TEST(EscapeKeys, StopAfterThePrefix) {
    EXPECT_EQ(typed("\x01x"), "[stop]");
    EXPECT_EQ(typed("\x01X"), "[stop]");
}

TEST(EscapeKeys, HelpAfterThePrefix) {
    EXPECT_EQ(typed("\x01h"), "[help]");
    EXPECT_EQ(typed("\x01?"), "[help]");
}

TEST(EscapeKeys, CommandLettersAloneAreTheGuests) {
    EXPECT_EQ(typed("xh?"), "xh?");
}

TEST(EscapeKeys, PrefixTwiceIsThePrefixOnce) {
    EXPECT_EQ(typed("\x01\x01"), "\x01");
    EXPECT_EQ(typed("\x01\x01x"), "\x01x");
    EXPECT_EQ(typed("\x01\x01\x01\x01"), "\x01\x01");
}

TEST(EscapeKeys, PrefixBeforeAnotherKeyGoesToTheGuestWithIt) {
    EXPECT_EQ(typed("\x01q"), "\x01q");
}

TEST(EscapeKeys, CommandInTheMiddleLeavesTheRestToTheGuest) {
    EXPECT_EQ(typed("ab\x01hcd"), "abcd[help]");
    EXPECT_EQ(typed("ab\x01xcd"), "abcd[stop]");
}

TEST(EscapeKeys, CommandMayBeSplitBetweenCalls) {
    EscapeKeys keys;
    EXPECT_EQ(typed(keys, "a\x01"), "a");
    EXPECT_EQ(typed(keys, ""), "");
    EXPECT_EQ(typed(keys, "x"), "[stop]");
    EXPECT_EQ(typed(keys, "x"), "x");
}

} // namespace
} // namespace vmm
