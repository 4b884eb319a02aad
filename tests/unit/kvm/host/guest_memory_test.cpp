#include "kvm/host/guest_memory.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kvm/host/mapping.hpp"
#include "kvm/host/unique_fd.hpp"
#include "kvm/host/write_log.hpp"
#include "support/host_child_process.hpp"
#include "support/host_errors.hpp"
#include "support/host_guest_range.hpp"
#include "support/host_process_facts.hpp"

namespace vmm {
namespace {

using testing::error_of;
using testing::has_flag;
using testing::mentions;
using testing::range;

constexpr std::uint64_t kRegionBytes = 2 * kMiB;
constexpr std::uint64_t kHighBase = 4 * kGiB;

/// Two adjacent regions, and a third one far above.
GuestMemory three_regions(PageSize page_size = PageSize::k4K) {
    const std::array layout{GuestRange{GuestAddress{0}, kRegionBytes},
                            GuestRange{GuestAddress{kRegionBytes}, kRegionBytes},
                            GuestRange{GuestAddress{kHighBase}, kRegionBytes}};
    return {layout, page_size};
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

TEST(GuestMemory, AHintChangesNoAnswer) {
    const GuestMemory memory = three_regions();
    GuestMemory::Hint hint;
    for (const std::uint64_t base : {kHighBase, kHighBase + 8, std::uint64_t{0}, kRegionBytes, kRegionBytes - 4}) {
        for (const std::uint64_t size : {std::uint64_t{0}, std::uint64_t{8}, kRegionBytes, UINT64_MAX}) {
            const auto with = memory.at(range(base, size), hint);
            const auto without = memory.at(range(base, size));
            ASSERT_EQ(with.has_value(), without.has_value()) << base << ' ' << size;
            EXPECT_TRUE(!with || (with->data() == without->data() && with->size() == without->size()));
        }
    }
}

TEST(GuestMemory, GivesARangeAcrossRegionsInParts) {
    const GuestMemory memory = three_regions();
    std::vector<std::span<std::byte>> parts;
    const auto take = [&](std::span<std::byte> part) { parts.push_back(part); };
    EXPECT_TRUE(memory.for_each_part(range(kRegionBytes - 1, 3), take));
    ASSERT_EQ(parts.size(), 2U);
    EXPECT_EQ(parts[0].data(), memory.at(range(kRegionBytes - 1, 1))->data());
    EXPECT_EQ(parts[0].size(), 1U);
    EXPECT_EQ(parts[1].data(), memory.at(range(kRegionBytes, 2))->data());
    EXPECT_EQ(parts[1].size(), 2U);
    parts.clear();
    EXPECT_TRUE(memory.for_each_part(range(kRegionBytes, 0), take));
    EXPECT_TRUE(parts.empty());
    EXPECT_FALSE(memory.for_each_part(range(2 * kRegionBytes - 1, 2), take)) << "behind it there is a gap";
    EXPECT_FALSE(memory.for_each_part(range(kHighBase, UINT64_MAX), take));
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

TEST(GuestMemory, IsKeptFromMergingWhereAParentHasOfferedAllMemoryToIt) {
    constexpr int kSetMemoryMerge = 67; // PR_SET_MEMORY_MERGE, Linux 6.4
    const std::string seen = testing::in_child_process([] {
        if (::prctl(kSetMemoryMerge, 1UL, 0UL, 0UL, 0UL) != 0) {
            return std::string("cannot be offered here");
        }
        const Mapping other = Mapping::anonymous(kRegionBytes, 4 * kKiB, 0, "a mapping");
        if (!has_flag(other.data(), "mg")) {
            return std::string("nothing is offered");
        }
        const GuestMemory memory = three_regions();
        for (const MemoryRegion& region : memory.regions()) {
            if (has_flag(region.host, "mg")) {
                return std::string("offered");
            }
        }
        return std::string("kept from it");
    });
    if (seen == "cannot be offered here") {
        GTEST_SKIP() << "this kernel has no PR_SET_MEMORY_MERGE";
    }
    EXPECT_EQ(seen, "kept from it");
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

/// Adds a region to `memory`; returns the message of the refusal, or "".
std::string add_region(GuestMemory& memory, GuestRange range) {
    return error_of([&]() -> int {
        memory.add(memory.map(range));
        return 0;
    });
}

TEST(GuestMemoryGrowth, MakesTheNewRegionPartOfTheMemory) {
    GuestMemory memory = three_regions();
    const GuestRange more = range(kHighBase + kGiB, kRegionBytes);
    EXPECT_EQ(add_region(memory, more), "");
    EXPECT_EQ(memory.size_bytes(), 4 * kRegionBytes);
    ASSERT_EQ(memory.regions().size(), 4U);
    EXPECT_EQ(memory.regions()[3].range, more);
    EXPECT_TRUE(memory.store(GuestAddress{kHighBase + kGiB + 8}, std::uint32_t{7}));
    EXPECT_EQ(memory.load<std::uint32_t>(GuestAddress{kHighBase + kGiB + 8}), 7U);
}

TEST(GuestMemoryGrowth, KeepsWhatIsThereWhereItIs) {
    GuestMemory memory = three_regions();
    const std::byte* const host = memory.regions()[0].host;
    ASSERT_TRUE(memory.store(GuestAddress{0x1000}, std::uint32_t{7}));
    EXPECT_EQ(add_region(memory, range(kGiB, kRegionBytes)), "");
    EXPECT_EQ(memory.regions()[0].host, host);
    EXPECT_EQ(memory.load<std::uint32_t>(GuestAddress{0x1000}), 7U);
}

TEST(GuestMemoryGrowth, KeepsTheOrderOfAddition) {
    GuestMemory memory = three_regions();
    EXPECT_EQ(add_region(memory, range(kGiB, kRegionBytes)), "");
    EXPECT_EQ(memory.regions()[2].range.base, GuestAddress{kHighBase});
    EXPECT_EQ(memory.regions()[3].range.base, GuestAddress{kGiB});
}

TEST(GuestMemoryGrowth, OnlyMapsUntilTheRegionIsAdded) {
    const GuestMemory memory = three_regions();
    const GuestRange more = range(kGiB, kRegionBytes);
    const std::byte* host = nullptr;
    {
        const GuestMemory::NewRegion region = memory.map(more);
        host = region.region().host;
        EXPECT_EQ(region.region().range, more);
        EXPECT_EQ(testing::count_resident_pages(region.region().bytes()), 0U);
        EXPECT_FALSE(memory.at(more));
        EXPECT_EQ(memory.regions().size(), 3U);
    }
    EXPECT_FALSE(testing::is_mapped(host, kRegionBytes)) << "what was not added is given back";
}

TEST(GuestMemoryGrowth, AdvisesTheKernelAsInConstruction) {
    const GuestMemory memory = three_regions();
    const GuestMemory::NewRegion region = memory.map(range(kGiB, kRegionBytes));
    EXPECT_TRUE(has_flag(region.region().host, "dd")) << "MADV_DONTDUMP";
    EXPECT_TRUE(has_flag(region.region().host, "dc")) << "MADV_DONTFORK";
    EXPECT_FALSE(has_flag(region.region().host, "hg"));
}

TEST(GuestMemoryGrowth, RefusesMemoryOverMemory) {
    GuestMemory memory = three_regions();
    for (const GuestRange& taken : {range(0, kRegionBytes), range(kRegionBytes, 8 * kRegionBytes),
                                    range(kHighBase - kRegionBytes, 2 * kRegionBytes), range(0, 2 * kHighBase)}) {
        EXPECT_TRUE(mentions(add_region(memory, taken), "there is memory at ")) << to_string(taken);
    }
    EXPECT_EQ(memory.regions().size(), 3U);
}

TEST(GuestMemoryGrowth, TakesMemoryRightBesideMemory) {
    GuestMemory memory = three_regions();
    EXPECT_EQ(add_region(memory, range(2 * kRegionBytes, kRegionBytes)), "");
    EXPECT_EQ(add_region(memory, range(kHighBase - kRegionBytes, kRegionBytes)), "");
    EXPECT_EQ(add_region(memory, range(kHighBase + kRegionBytes, kRegionBytes)), "");
}

TEST(GuestMemoryGrowth, RefusesABaseThatLargeMappingsCannotHave) {
    GuestMemory memory = three_regions();
    EXPECT_EQ(memory.region_alignment(), 2 * kMiB);
    EXPECT_TRUE(mentions(add_region(memory, range(kGiB + 4096, kRegionBytes)), "at a multiple of 2 MiB"));
    EXPECT_TRUE(mentions(add_region(memory, range(kGiB + kMiB, kRegionBytes)), "at a multiple of 2 MiB"));
}

TEST(GuestMemoryGrowth, RefusesASizeThatIsNoMultipleOfThePage) {
    GuestMemory memory = three_regions();
    EXPECT_TRUE(mentions(add_region(memory, range(kGiB, 0)), "multiple of the page size"));
    EXPECT_TRUE(mentions(add_region(memory, range(kGiB, 4097)), "multiple of the page size"));
    EXPECT_EQ(add_region(memory, range(kGiB, 4096)), "");
}

TEST(GuestMemoryGrowth, EndsWithTheSixteenthRegion) {
    GuestMemory memory = three_regions();
    for (std::uint64_t i = 3; i < GuestMemory::kMaxRegions; ++i) {
        EXPECT_EQ(add_region(memory, range(kGiB + i * kRegionBytes, kRegionBytes)), "") << i;
    }
    EXPECT_TRUE(mentions(add_region(memory, range(2 * kGiB, kRegionBytes)), "there are 16 regions already"));
    EXPECT_EQ(memory.regions().size(), 16U);
}

TEST(GuestMemoryGrowth, OfMoreRegionsThanThereCanBeIsRefusedInConstruction) {
    std::vector<GuestRange> layout;
    for (std::uint64_t i = 0; i <= GuestMemory::kMaxRegions; ++i) {
        layout.push_back(range(i * kRegionBytes, kRegionBytes));
    }
    EXPECT_TRUE(mentions(error_of([&] { return GuestMemory(layout, PageSize::k4K); }), "16 regions"));
    layout.pop_back();
    EXPECT_EQ(error_of([&] { return GuestMemory(layout, PageSize::k4K); }), "");
}

TEST(GuestMemoryGrowth, IsSeenWholeOrNotAtAllByOthers) {
    GuestMemory memory = three_regions();
    const auto base_of = [](std::uint64_t index) { return GuestAddress{kGiB + index * kRegionBytes}; };
    std::atomic<bool> grown{false};
    std::atomic<unsigned> torn{0};
    {
        std::vector<std::jthread> readers;
        for (int reader = 0; reader < 2; ++reader) {
            readers.emplace_back([&] {
                for (bool last = false; !last;) {
                    last = grown;
                    for (std::uint64_t i = 3; i < GuestMemory::kMaxRegions; ++i) {
                        // The first bytes of a new region were written before the region was added.
                        const auto value = memory.load<std::uint64_t>(base_of(i));
                        torn += value && *value != i ? 1U : 0U;
                        torn += last && !value ? 1U : 0U;
                    }
                    torn += memory.size_bytes() == memory.regions().size() * kRegionBytes || !last ? 0U : 1U;
                }
            });
        }
        for (std::uint64_t i = 3; i < GuestMemory::kMaxRegions; ++i) {
            GuestMemory::NewRegion region = memory.map({base_of(i), kRegionBytes});
            *reinterpret_cast<std::uint64_t*>(region.region().host) = i; // the region's own first bytes, aligned
            memory.add(std::move(region));
        }
        grown = true;
    }
    EXPECT_EQ(torn, 0U);
}

// ---- Memory that comes and goes

/// A pluggable region of 64 MiB, and the spare file beneath it.
struct PluggableMemory {
    explicit PluggableMemory(PageSize page_size = PageSize::k4K) : memory(page_size) {
        spare = UniqueFd(::memfd_create("spare", MFD_CLOEXEC));
        EXPECT_EQ(::ftruncate(spare.get(), static_cast<off_t>(kSpareBytes)), 0);
        memory.add(memory.map_pluggable(kRange, {spare.get(), kSpareBytes}));
    }
    [[nodiscard]] std::span<std::byte> at(std::uint64_t offset, std::uint64_t size) const {
        return memory.at({GuestAddress{to_integer(kRange.base) + offset}, size}).value();
    }
    [[nodiscard]] std::uint64_t spare_pages() const {
        struct stat facts {};
        EXPECT_EQ(::fstat(spare.get(), &facts), 0);
        return static_cast<std::uint64_t>(facts.st_blocks) * 512 / 4096;
    }
    static GuestRange part(std::uint64_t offset, std::uint64_t size) {
        return {GuestAddress{to_integer(kRange.base) + offset}, size};
    }

    static constexpr GuestRange kRange{GuestAddress{4 * kGiB}, 64 * kMiB};
    static constexpr std::uint64_t kSpareBytes = 4 * kMiB;
    UniqueFd spare; ///< outlives the memory
    GuestMemory memory;
};

TEST(PluggableMemory, WhatIsNotPluggedIsOneSpareFileWhoeverTouchesIt) {
    const PluggableMemory pluggable;
    EXPECT_EQ(testing::count_resident_pages(pluggable.at(0, PluggableMemory::kRange.size)), 0U);
    std::ranges::fill(pluggable.at(0, PluggableMemory::kRange.size), std::byte{7});
    EXPECT_EQ(pluggable.spare_pages(), PluggableMemory::kSpareBytes / 4096) << "and no page more";
}

TEST(PluggableMemory, WhatIsPluggedIsNewAndItsOwn) {
    PluggableMemory pluggable;
    std::ranges::fill(pluggable.at(0, PluggableMemory::kRange.size), std::byte{7});
    pluggable.memory.plug(PluggableMemory::part(2 * kMiB, 6 * kMiB));
    const std::span<std::byte> plugged = pluggable.at(2 * kMiB, 6 * kMiB);
    EXPECT_EQ(plugged.front(), std::byte{0});
    std::ranges::fill(plugged, std::byte{9});
    EXPECT_EQ(pluggable.at(2 * kMiB - 1, 1).front(), std::byte{7});
    EXPECT_EQ(pluggable.at(8 * kMiB, 1).front(), std::byte{7});
    EXPECT_EQ(pluggable.at(4 * kMiB, 1).front(), std::byte{9});
}

TEST(PluggableMemory, WhatIsUnpluggedIsTheHostsAgainEvenIfItWasLocked) {
    PluggableMemory pluggable;
    pluggable.memory.plug(PluggableMemory::part(0, 8 * kMiB));
    const std::span<std::byte> plugged = pluggable.at(0, 8 * kMiB);
    EXPECT_EQ(::mlock2(plugged.data(), plugged.size(), MLOCK_ONFAULT), 0);
    std::ranges::fill(plugged, std::byte{9});
    pluggable.memory.unplug(PluggableMemory::part(2 * kMiB, 4 * kMiB));
    EXPECT_NE(pluggable.at(2 * kMiB, 1).front(), std::byte{9});
    EXPECT_EQ(plugged.front(), std::byte{9});
    EXPECT_EQ(plugged.back(), std::byte{9});
    EXPECT_EQ(testing::count_resident_pages(plugged.first(2 * kMiB)), 512U);
    pluggable.memory.plug(PluggableMemory::part(2 * kMiB, 4 * kMiB));
    EXPECT_EQ(testing::count_resident_pages(pluggable.at(2 * kMiB, 4 * kMiB)), 0U);
}

TEST(PluggableMemory, APartOfAFileIsPlugged) {
    PluggableMemory pluggable;
    const UniqueFd file(::memfd_create("file", MFD_CLOEXEC));
    ASSERT_EQ(::ftruncate(file.get(), static_cast<off_t>(8 * kMiB)), 0);
    pluggable.memory.plug(PluggableMemory::part(4 * kMiB, 2 * kMiB), FilePart{0, 2 * kMiB, file.get(), 6 * kMiB});
    pluggable.at(4 * kMiB, 1).front() = std::byte{5};
    std::byte seen{};
    EXPECT_EQ(::pread(file.get(), &seen, 1, static_cast<off_t>(6 * kMiB)), 1);
    EXPECT_EQ(seen, std::byte{5});
}

TEST(PluggableMemory, WhatComesAndGoesIsLoggedAsWritten) {
    PluggableMemory pluggable;
    WriteLog log(pluggable.memory.regions());
    pluggable.memory.log_writes(&log);
    pluggable.memory.plug(PluggableMemory::part(2 * kMiB, 2 * kMiB));
    const auto first = log.take(0);
    pluggable.memory.unplug(PluggableMemory::part(2 * kMiB, 2 * kMiB));
    const auto second = log.take(0);
    pluggable.memory.log_writes(nullptr);
    EXPECT_EQ(first, second);
    EXPECT_EQ(first.at(2 * kMiB / 4096 / 64), ~std::uint64_t{0});
    EXPECT_EQ(first.at(0), 0U);
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
