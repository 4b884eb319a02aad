#include "kvm/guest_memory.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <vector>

#include "support/host_errors.hpp"
#include "support/host_process_facts.hpp"

namespace vmm {
namespace {

using testing::error_of;
using testing::has_flag;
using testing::mentions;

constexpr std::uint64_t kRegionBytes = 2 * kMiB;
constexpr std::uint64_t kHighBase = 4 * kGiB;

/// Two regions that touch each other, and a third one far above.
GuestMemory three_regions(PageSize page_size = PageSize::k4K) {
    const std::array layout{GuestRange{GuestAddress{0}, kRegionBytes},
                            GuestRange{GuestAddress{kRegionBytes}, kRegionBytes},
                            GuestRange{GuestAddress{kHighBase}, kRegionBytes}};
    return {layout, page_size};
}

GuestRange range(std::uint64_t base, std::uint64_t size) {
    return {GuestAddress{base}, size};
}

TEST(GuestMemory, GivesTheHostBytesOfARange) {
    const GuestMemory memory = three_regions();
    for (const MemoryRegion& region : memory.regions()) {
        const auto bytes = memory.at(range(to_integer(region.range.base) + 0x1234, 0x567));
        ASSERT_TRUE(bytes);
        EXPECT_EQ(bytes->data(), region.host + 0x1234);
        EXPECT_EQ(bytes->size(), 0x567U);
    }
}

TEST(GuestMemory, GivesAWholeRegionAndNotAByteMore) {
    const GuestMemory memory = three_regions();
    EXPECT_TRUE(memory.at(range(kHighBase, kRegionBytes)));
    EXPECT_FALSE(memory.at(range(kHighBase, kRegionBytes + 1)));
    EXPECT_FALSE(memory.at(range(kHighBase - 1, kRegionBytes)));
    EXPECT_TRUE(memory.at(range(kHighBase + kRegionBytes - 1, 1)));
    EXPECT_FALSE(memory.at(range(kHighBase + kRegionBytes, 1)));
}

TEST(GuestMemory, RefusesARangeAcrossTwoRegionsThatTouch) {
    const GuestMemory memory = three_regions();
    EXPECT_FALSE(memory.at(range(kRegionBytes - 1, 2)));
    EXPECT_FALSE(memory.at(range(0, 2 * kRegionBytes)));
}

TEST(GuestMemory, RefusesTheHoleBetweenRegions) {
    const GuestMemory memory = three_regions();
    EXPECT_FALSE(memory.at(range(3 * kGiB, 1)));
    EXPECT_FALSE(memory.at(range(2 * kRegionBytes, 1)));
}

TEST(GuestMemory, RefusesRangesThatWrap) {
    const GuestMemory memory = three_regions();
    EXPECT_FALSE(memory.at(range(UINT64_MAX, 2)));
    EXPECT_FALSE(memory.at(range(UINT64_MAX - 4095, 8192)));
    EXPECT_FALSE(memory.at(range(0, UINT64_MAX)));
    EXPECT_FALSE(memory.at(range(1, UINT64_MAX)));
    EXPECT_FALSE(memory.at(range(kHighBase + 1, UINT64_MAX)));
}

TEST(GuestMemory, GivesAnEmptyRangeInsideAndRefusesOneOutside) {
    const GuestMemory memory = three_regions();
    const auto empty = memory.at(range(0x1000, 0));
    ASSERT_TRUE(empty);
    EXPECT_TRUE(empty->empty());
    EXPECT_FALSE(memory.at(range(3 * kGiB, 0)));
    EXPECT_FALSE(memory.at(range(UINT64_MAX, 0)));
}

TEST(GuestMemory, CopiesInAndOut) {
    const GuestMemory memory = three_regions();
    const std::array in{std::byte{1}, std::byte{2}, std::byte{3}};
    std::array<std::byte, 3> out{};
    ASSERT_TRUE(memory.copy_in(GuestAddress{kHighBase + 5}, in));
    ASSERT_TRUE(memory.copy_out(GuestAddress{kHighBase + 5}, out));
    EXPECT_EQ(out, in);
}

TEST(GuestMemory, CopiesNothingWhereTheRangeIsNotWhollyRam) {
    const GuestMemory memory = three_regions();
    const std::array in{std::byte{1}, std::byte{2}};
    std::array out{std::byte{7}, std::byte{7}};
    const GuestAddress last{kHighBase + kRegionBytes - 1};
    EXPECT_FALSE(memory.copy_in(last, in));
    EXPECT_EQ(memory.load<std::uint8_t>(last), std::uint8_t{0});
    EXPECT_FALSE(memory.copy_out(last, out));
    EXPECT_EQ(out[0], std::byte{7});
}

TEST(GuestMemory, LoadsAndStoresWithoutAlignment) {
    const GuestMemory memory = three_regions();
    const GuestAddress odd{0x1003};
    ASSERT_TRUE(memory.store(odd, std::uint64_t{0x1122334455667788}));
    EXPECT_EQ(memory.load<std::uint64_t>(odd), 0x1122334455667788U);
    EXPECT_EQ(memory.load<std::uint8_t>(odd), std::uint8_t{0x88});
}

TEST(GuestMemory, LoadsUpToTheLastByteAndNoFurther) {
    const GuestMemory memory = three_regions();
    const std::uint64_t end = kHighBase + kRegionBytes;
    EXPECT_TRUE(memory.load<std::uint64_t>(GuestAddress{end - 8}));
    EXPECT_FALSE(memory.load<std::uint64_t>(GuestAddress{end - 7}));
    EXPECT_FALSE(memory.load<std::uint64_t>(GuestAddress{UINT64_MAX - 3}));
}

TEST(GuestMemory, HostAddressesAreCongruentToGuestAddresses) {
    for (const PageSize page_size : {PageSize::k4K, PageSize::kThp}) {
        const GuestMemory memory = three_regions(page_size);
        for (const MemoryRegion& region : memory.regions()) {
            const auto host = reinterpret_cast<std::uintptr_t>(region.host);
            EXPECT_EQ(host % (2 * kMiB), to_integer(region.range.base) % (2 * kMiB)) << to_string(page_size);
        }
    }
}

TEST(GuestMemory, SaysHowMuchThereIs) {
    EXPECT_EQ(three_regions().size_bytes(), 3 * kRegionBytes);
}

TEST(GuestMemory, HasNoPagesAtFirst) {
    const GuestMemory memory = three_regions();
    for (const MemoryRegion& region : memory.regions()) {
        EXPECT_EQ(testing::count_resident_pages(region.bytes()), 0U);
    }
}

TEST(GuestMemory, IsNeitherDumpedNorCopiedOnFork) {
    const GuestMemory memory = three_regions();
    for (const MemoryRegion& region : memory.regions()) {
        EXPECT_TRUE(has_flag(region.host, "dd")) << "MADV_DONTDUMP";
        EXPECT_TRUE(has_flag(region.host, "dc")) << "MADV_DONTFORK";
    }
}

TEST(GuestMemory, AdvisesHugePagesAsAsked) {
    const GuestMemory small = three_regions(PageSize::k4K);
    EXPECT_FALSE(has_flag(small.regions()[0].host, "hg"));
    const GuestMemory transparent = three_regions(PageSize::kThp);
    EXPECT_FALSE(has_flag(transparent.regions()[0].host, "nh"));
}

TEST(GuestMemory, RefusesASizeThatIsNoMultipleOfThePage) {
    for (const std::uint64_t size : {std::uint64_t{0}, std::uint64_t{4095}, kRegionBytes + 1}) {
        const std::array layout{range(0, size)};
        EXPECT_TRUE(mentions(error_of([&] { return GuestMemory(layout, PageSize::k4K); }), "multiple of the page size"))
            << size;
    }
    const std::array layout{range(0, 3 * kMiB)};
    EXPECT_TRUE(mentions(error_of([&] { return GuestMemory(layout, PageSize::k2M); }), "2 MiB"));
}

TEST(GuestMemory, MoreThanTheAddressSpaceIsAnErrorThatNamesTheRange) {
    const std::array layout{range(0, 1ULL << 60)};
    const std::string error = error_of([&] { return GuestMemory(layout, PageSize::k4K); });
    EXPECT_TRUE(mentions(error, "guest memory at 0x0-0xfffffffffffffff")) << error;
}

TEST(GuestMemory, GivesItsAddressSpaceBack) {
    std::vector<const std::byte*> hosts;
    {
        const GuestMemory memory = three_regions();
        for (const MemoryRegion& region : memory.regions()) {
            hosts.push_back(region.host);
        }
    }
    for (const std::byte* const host : hosts) {
        EXPECT_FALSE(testing::is_mapped(host, kRegionBytes));
    }
}

TEST(PageSize, HasTheNamesOfTheCommandLine) {
    EXPECT_EQ(to_string(PageSize::k4K), "4K");
    EXPECT_EQ(to_string(PageSize::kThp), "thp");
    EXPECT_EQ(to_string(PageSize::k2M), "2M");
    EXPECT_EQ(to_string(PageSize::k1G), "1G");
}

TEST(PageSize, OfTransparentHugePagesIsCertainOnlyForSmallOnes) {
    EXPECT_EQ(certain_page_bytes(PageSize::kThp), 4 * kKiB);
    EXPECT_EQ(largest_page_bytes(PageSize::kThp), 2 * kMiB);
    EXPECT_EQ(certain_page_bytes(PageSize::k1G), kGiB);
    EXPECT_EQ(largest_page_bytes(PageSize::k4K), 4 * kKiB);
}

} // namespace
} // namespace vmm
