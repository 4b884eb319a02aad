#include "prefault/host_populate.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kvm/process_memory.hpp"
#include "support/host_page_size.hpp"
#include "support/host_process_facts.hpp"
#include "support/prefault_stop.hpp"

namespace vmm::prefault {
namespace {

using testing::count_resident_pages;

constexpr std::uint64_t kLowBytes = 6 * kMiB;
constexpr std::uint64_t kHighBytes = 3 * kMiB; // no multiple of 2 MiB

const std::array kLayout{GuestRange{GuestAddress{0}, kLowBytes}, GuestRange{GuestAddress{4 * kGiB}, kHighBytes}};

class HostPopulate : public ::testing::TestWithParam<PageSize> {
  protected:
    [[nodiscard]] std::size_t resident_pages() const {
        std::size_t pages = 0;
        for (const MemoryRegion& region : memory_.regions()) {
            pages += count_resident_pages(region.bytes());
        }
        return pages;
    }
    GuestMemory memory_{kLayout, GetParam()};
};

TEST_P(HostPopulate, MakesEveryPageExist) {
    EXPECT_TRUE(populate_host(memory_, kLayout, 3, {}));
    EXPECT_EQ(resident_pages(), (kLowBytes + kHighBytes) / 4096);
}

TEST_P(HostPopulate, LeavesNoPageSharedWithTheZeroPage) {
    for (const MemoryRegion& region : memory_.regions()) { // A read maps the shared zero page.
        [[maybe_unused]] volatile const auto read = region.bytes()[4096];
    }
    EXPECT_TRUE(populate_host(memory_, kLayout, 1, {}));
    for (const MemoryRegion& region : memory_.regions()) {
        EXPECT_EQ(resident_memory_of(region.bytes()).bytes,
                  region.range.size); // The zero page does not count as resident.
    }
}

TEST_P(HostPopulate, KeepsWhatIsThere) {
    for (const MemoryRegion& region : memory_.regions()) {
        for (std::size_t offset = 0; offset < region.range.size; offset += 3 * 4096) {
            region.bytes()[offset] = static_cast<std::byte>(1 + offset / 4096);
        }
    }
    EXPECT_TRUE(populate_host(memory_, kLayout, 2, {}));
    for (const MemoryRegion& region : memory_.regions()) {
        for (std::size_t offset = 0; offset < region.range.size; offset += 3 * 4096) {
            ASSERT_EQ(region.bytes()[offset], static_cast<std::byte>(1 + offset / 4096));
        }
    }
}

TEST_P(HostPopulate, DoesNothingOnceAStopIsRequested) {
    EXPECT_FALSE(populate_host(memory_, kLayout, 2, testing::stop_requested_already()));
    EXPECT_EQ(resident_pages(), 0U);
}

TEST_P(HostPopulate, TakesMoreWorkersThanChunks) {
    EXPECT_TRUE(populate_host(memory_, kLayout, 64, {}));
    EXPECT_EQ(resident_pages(), (kLowBytes + kHighBytes) / 4096);
}

TEST_P(HostPopulate, MayBeDoneAgain) {
    EXPECT_TRUE(populate_host(memory_, kLayout, 1, {}));
    EXPECT_TRUE(populate_host(memory_, kLayout, 1, {}));
    EXPECT_EQ(resident_pages(), (kLowBytes + kHighBytes) / 4096);
}

INSTANTIATE_TEST_SUITE_P(Backings, HostPopulate, ::testing::Values(PageSize::k4K, PageSize::kThp),
                         [](const auto& backing) { return std::string(to_string(backing.param)); });

TEST(HostPopulateParts, LeavesTheRestAlone) {
    const GuestMemory memory(kLayout, PageSize::k4K);
    const std::array part{GuestRange{GuestAddress{kMiB}, kMiB}};
    EXPECT_TRUE(populate_host(memory, part, 2, {}));
    const auto low = memory.regions()[0].bytes();
    EXPECT_EQ(count_resident_pages(low), kMiB / 4096);
    EXPECT_EQ(count_resident_pages(low.subspan(kMiB, kMiB)), kMiB / 4096);
    EXPECT_EQ(count_resident_pages(memory.regions()[1].bytes()), 0U);
}

TEST(HostPopulateParts, OfNothingIsDoneAtOnce) {
    const GuestMemory memory(kLayout, PageSize::k4K);
    EXPECT_TRUE(populate_host(memory, {}, 2, {}));
}

using PageBytes = std::vector<std::uint64_t>;

TEST(ProvenMapping, IsTheSmallPageWhereNothingMoreIsCertain) {
    const GuestMemory small(kLayout, PageSize::k4K);
    EXPECT_TRUE(populate_host(small, kLayout, 1, {}));
    EXPECT_EQ(proven_mapping_bytes(small), (PageBytes{4 * kKiB, 4 * kKiB}));
}

TEST(ProvenMapping, OfTransparentHugePagesNeedsThemToBeThere) {
    const GuestMemory untouched(kLayout, PageSize::kThp);
    EXPECT_EQ(proven_mapping_bytes(untouched), (PageBytes{4 * kKiB, 4 * kKiB}));
}

TEST(ProvenMapping, OfTransparentHugePagesNeedsAllOfARegion) {
    const GuestMemory memory(kLayout, PageSize::kThp);
    EXPECT_TRUE(populate_host(memory, kLayout, 1, {}));
    // The last MiB of the second region cannot be a huge page, whatever this host gives.
    EXPECT_EQ(proven_mapping_bytes(memory).at(1), 4 * kKiB);
}

} // namespace
} // namespace vmm::prefault
