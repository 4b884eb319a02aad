#include "vmm/guest/options.hpp"

#include <gtest/gtest.h>

#include <string>
#include <string_view>

namespace vmm::guest {
namespace {

Options parsed(std::string_view line) {
    const ParsedOptions result = parse_options(line);
    EXPECT_FALSE(result.error) << line << ": " << result.error->reason;
    return result.options;
}

std::string reason(std::string_view line) {
    const ParsedOptions result = parse_options(line);
    return result.error ? std::string(result.error->reason) : "accepted";
}

TEST(GuestOptions, EmptyLineGivesTheDefaults) {
    const Options options = parsed("");
    EXPECT_EQ(options.passes, 3U);
    EXPECT_EQ(options.stride, 4096U);
    EXPECT_EQ(options.cpus, UINT64_MAX);
    EXPECT_EQ(options.order, Order::kSequential);
    EXPECT_FALSE(options.reader_one);
    EXPECT_FALSE(options.check);
    EXPECT_FALSE(options.report_at_end);
    EXPECT_FALSE(options.tables);
    EXPECT_FALSE(options.fdt);
    EXPECT_FALSE(options.heartbeat_khz);
}

TEST(GuestOptions, AllAreRead) {
    const Options options =
        parsed("passes=7 stride=2M cpus=4 order=random reader=one check=1 report=end tables=0xe0001000 fdt=0xc0010");
    EXPECT_EQ(options.passes, 7U);
    EXPECT_EQ(options.stride, 2U << 20);
    EXPECT_EQ(options.cpus, 4U);
    EXPECT_EQ(options.order, Order::kRandom);
    EXPECT_TRUE(options.reader_one);
    EXPECT_TRUE(options.check);
    EXPECT_EQ(options.report_at_end, true);
    EXPECT_EQ(options.tables, 0xe0001000U);
    EXPECT_EQ(options.fdt, 0xc0010U);
}

TEST(GuestOptions, AddressOfADeviceTreeIsChecked) {
    EXPECT_EQ(reason("fdt=c0010"), "not-0x-and-hexadecimal");
    EXPECT_EQ(reason("fdt=0x0"), "not-a-multiple-of-8");
    EXPECT_EQ(reason("fdt=0xc0012"), "not-a-multiple-of-8");
    EXPECT_EQ(reason("fdt=0x100000000"), "not-below-4-gib");
    EXPECT_EQ(reason("fdt=0x8 fdt=0x8"), "given-twice");
}

TEST(GuestOptions, HeartbeatNeedsARateAndLiveResults) {
    EXPECT_EQ(parsed("heartbeat=2000000 report=live").heartbeat_khz, 2'000'000U);
    EXPECT_EQ(reason("heartbeat=0"), "not-1-to-100000000-khz");
    EXPECT_EQ(reason("heartbeat=on"), "not-1-to-100000000-khz");
    EXPECT_EQ(reason("heartbeat=2000000 report=end"), "not-with-heartbeat");
    EXPECT_EQ(reason("report=end heartbeat=2000000"), "not-with-heartbeat");
}

TEST(GuestOptions, WordsOfOthersAreIgnored) {
    const Options options = parsed("  console=ttyS0 quiet  =x xpasses=9 passesx=9 passes=5   root=/dev/vda ");
    EXPECT_EQ(options.passes, 5U);
}

TEST(GuestOptions, FirstErrorIsNamed) {
    const ParsedOptions result = parse_options("console=ttyS0 stride=5000 passes=0");
    ASSERT_TRUE(result.error);
    EXPECT_EQ(result.error->option, "stride");
    EXPECT_EQ(result.error->value, "5000");
    EXPECT_EQ(result.error->reason, "not-a-multiple-of-4096");
}

TEST(GuestOptions, OptionGivenTwiceIsAnError) {
    EXPECT_EQ(reason("passes=1 passes=1"), "given-twice");
}

TEST(GuestOptions, PassesAreBounded) {
    EXPECT_EQ(parsed("passes=1000000").passes, 1'000'000U);
    for (const auto* line : {"passes=0", "passes=1000001", "passes=", "passes=-1", "passes=+1", "passes=1x",
                             "passes=18446744073709551617"}) {
        EXPECT_EQ(reason(line), "not-1-to-1000000") << line;
    }
}

TEST(GuestOptions, StrideHasSuffixes) {
    EXPECT_EQ(parsed("stride=8192").stride, 8192U);
    EXPECT_EQ(parsed("stride=64K").stride, 65536U);
    EXPECT_EQ(parsed("stride=64k").stride, 65536U);
    EXPECT_EQ(parsed("stride=1024m").stride, 1U << 30);
    EXPECT_EQ(parsed("stride=1048576M").stride, kMaxStrideBytes);
}

TEST(GuestOptions, StrideThatCannotBeIsRefused) {
    EXPECT_EQ(reason("stride="), "not-a-size");
    EXPECT_EQ(reason("stride=K"), "not-a-size");
    EXPECT_EQ(reason("stride=4KK"), "not-a-size");
    EXPECT_EQ(reason("stride=4G"), "not-a-size");
    EXPECT_EQ(reason("stride=999999999999999999M"), "not-a-size"); // More than 64 bits.
    EXPECT_EQ(reason("stride=0"), "not-a-multiple-of-4096");
    EXPECT_EQ(reason("stride=1K"), "not-a-multiple-of-4096");
    EXPECT_EQ(reason("stride=1048577M"), "too-large");
}

TEST(GuestOptions, TablesAreAPageBelow4GiB) {
    EXPECT_EQ(parsed("tables=0xFFFFF000").tables, 0xfffff000U);
    EXPECT_EQ(reason("tables=4096"), "not-0x-and-hexadecimal");
    EXPECT_EQ(reason("tables=0x"), "not-0x-and-hexadecimal");
    EXPECT_EQ(reason("tables=0x10g0"), "not-0x-and-hexadecimal");
    EXPECT_EQ(reason("tables=0x10000000000001000"), "not-0x-and-hexadecimal"); // 17 digits.
    EXPECT_EQ(reason("tables=0x0"), "not-a-multiple-of-4096");
    EXPECT_EQ(reason("tables=0x1001"), "not-a-multiple-of-4096");
    EXPECT_EQ(reason("tables=0x100000000"), "not-below-4-gib");
}

TEST(GuestOptions, ChoicesAreSpelledOut) {
    EXPECT_EQ(reason("order=reverse"), "not-seq-or-random");
    EXPECT_EQ(reason("reader=all"), "not-one-or-none");
    EXPECT_EQ(reason("check=yes"), "not-0-or-1");
    EXPECT_EQ(reason("report=never"), "not-live-or-end");
    EXPECT_EQ(reason("cpus=0"), "not-a-positive-number");
    EXPECT_EQ(parsed("order=seq reader=none check=0 report=live").report_at_end, false);
}

} // namespace
} // namespace vmm::guest
