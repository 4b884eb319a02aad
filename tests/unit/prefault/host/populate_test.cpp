#include "prefault/host/populate.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kvm/host/process_memory.hpp"
#include "support/host_page_size.hpp"
#include "support/host_process_facts.hpp"
#include "support/prefault_stop.hpp"

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24 // Linux 5.18
#endif

namespace vmm::prefault {
namespace {

using testing::count_resident_pages;

constexpr std::uint64_t kLowBytes = 6 * kMiB;
constexpr std::uint64_t kHighBytes = 3 * kMiB; // no multiple of 2 MiB

const std::array kLayout{GuestRange{GuestAddress{0}, kLowBytes}, GuestRange{GuestAddress{4 * kGiB}, kHighBytes}};

bool populate(const GuestMemory& memory, std::span<const GuestRange> ranges, unsigned workers,
              const std::stop_token& stop = {}) {
    std::vector<PlacedRange> placed;
    for (const GuestRange& range : ranges) {
        placed.push_back({range, std::nullopt});
    }
    Workforce workforce;
    workforce.workers = workers;
    return populate_host(memory, placed, workforce, stop);
}

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
    EXPECT_TRUE(populate(memory_, kLayout, 3));
    EXPECT_EQ(resident_pages(), (kLowBytes + kHighBytes) / 4096);
}

TEST_P(HostPopulate, LeavesNoPageSharedWithTheZeroPage) {
    for (const MemoryRegion& region : memory_.regions()) { // a read maps the shared zero page
        [[maybe_unused]] volatile const auto read = region.bytes()[4096];
    }
    EXPECT_TRUE(populate(memory_, kLayout, 1));
    for (const MemoryRegion& region : memory_.regions()) {
        EXPECT_EQ(resident_memory_of(region.bytes()).value().bytes,
                  region.range.size); // The zero page does not count as resident.
    }
}

TEST_P(HostPopulate, KeepsWhatIsThere) {
    for (const MemoryRegion& region : memory_.regions()) {
        for (std::size_t offset = 0; offset < region.range.size; offset += 3 * 4096) {
            region.bytes()[offset] = static_cast<std::byte>(1 + offset / 4096);
        }
    }
    EXPECT_TRUE(populate(memory_, kLayout, 2));
    for (const MemoryRegion& region : memory_.regions()) {
        for (std::size_t offset = 0; offset < region.range.size; offset += 3 * 4096) {
            ASSERT_EQ(region.bytes()[offset], static_cast<std::byte>(1 + offset / 4096));
        }
    }
}

TEST_P(HostPopulate, DoesNothingOnceAStopIsRequested) {
    EXPECT_FALSE(populate(memory_, kLayout, 2, testing::stop_requested_already()));
    EXPECT_EQ(resident_pages(), 0U);
}

TEST_P(HostPopulate, TakesMoreWorkersThanChunks) {
    EXPECT_TRUE(populate(memory_, kLayout, 64));
    EXPECT_EQ(resident_pages(), (kLowBytes + kHighBytes) / 4096);
}

TEST_P(HostPopulate, MayBeDoneAgain) {
    EXPECT_TRUE(populate(memory_, kLayout, 1));
    EXPECT_TRUE(populate(memory_, kLayout, 1));
    EXPECT_EQ(resident_pages(), (kLowBytes + kHighBytes) / 4096);
}

TEST_P(HostPopulate, IsUndoneByARelease) {
    EXPECT_TRUE(populate(memory_, kLayout, 2));
    release_host(memory_, 3);
    EXPECT_EQ(resident_pages(), 0U);
}

TEST_P(HostPopulate, MayBeDoneAfterARelease) {
    memory_.regions()[0].bytes()[0] = std::byte{7};
    release_host(memory_, 1);
    EXPECT_TRUE(populate(memory_, kLayout, 2));
    EXPECT_EQ(resident_pages(), (kLowBytes + kHighBytes) / 4096);
    EXPECT_EQ(memory_.regions()[0].bytes()[0], std::byte{0}) << "the content went with the page";
}

INSTANTIATE_TEST_SUITE_P(Backings, HostPopulate, ::testing::Values(PageSize::k4K, PageSize::kThp),
                         [](const auto& backing) { return std::string(to_string(backing.param)); });

TEST(HostPopulateParts, LeavesTheRestAlone) {
    const GuestMemory memory(kLayout, PageSize::k4K);
    const std::array part{GuestRange{GuestAddress{kMiB}, kMiB}};
    EXPECT_TRUE(populate(memory, part, 2));
    const auto low = memory.regions()[0].bytes();
    EXPECT_EQ(count_resident_pages(low), kMiB / 4096);
    EXPECT_EQ(count_resident_pages(low.subspan(kMiB, kMiB)), kMiB / 4096);
    EXPECT_EQ(count_resident_pages(memory.regions()[1].bytes()), 0U);
}

TEST(HostPopulateParts, OfNothingIsDoneAtOnce) {
    const GuestMemory memory(kLayout, PageSize::k4K);
    EXPECT_TRUE(populate(memory, {}, 2));
}

TEST(HostPopulateParts, NeedNotBeInOrder) {
    const GuestMemory memory(kLayout, PageSize::k4K);
    const std::array parts{kLayout[1], kLayout[0]};
    EXPECT_TRUE(populate(memory, parts, 2));
    EXPECT_EQ(count_resident_pages(memory.regions()[0].bytes()), kLowBytes / 4096);
    EXPECT_EQ(count_resident_pages(memory.regions()[1].bytes()), kHighBytes / 4096);
}

TEST(HostChunk, IsShortEnoughForAStopToBeHeard) {
    for (const unsigned workers : {1U, 2U, 512U}) {
        EXPECT_LE(host_chunk_bytes(PageSize::k4K, 16 * kTiB, workers), 16 * kMiB);
        EXPECT_LE(host_chunk_bytes(PageSize::k2M, 16 * kTiB, workers), 16 * kMiB);
    }
}

TEST(HostChunk, IsNeverLessThanAPage) {
    EXPECT_EQ(host_chunk_bytes(PageSize::k1G, kGiB, 8), kGiB);
    EXPECT_EQ(host_chunk_bytes(PageSize::k1G, 16 * kTiB, 1), kGiB);
    EXPECT_GE(host_chunk_bytes(PageSize::kThp, 4096, 64), 2 * kMiB);
}

TEST(ReleaseHost, GivesBackWhatIsLocked) {
    const GuestMemory memory(kLayout, PageSize::k4K);
    const auto low = memory.regions()[0].bytes();
    EXPECT_TRUE(populate(memory, kLayout, 1));
    // mlock() is not used, because sanitizers make it do nothing.
    if (::mlock2(low.data(), low.size(), MLOCK_ONFAULT) != 0) {
        GTEST_SKIP() << "this process may not lock " << low.size() << " bytes";
    }
    if (::madvise(low.data(), 4096, MADV_DONTNEED_LOCKED) != 0) {
        GTEST_SKIP() << "this kernel keeps locked pages until they are unmapped (before Linux 5.18)";
    }
    release_host(memory, 2);
    EXPECT_EQ(count_resident_pages(low), 0U);
}

TEST(ReleaseHost, OfWhatWasNeverPopulatedDoesNothing) {
    const GuestMemory memory(kLayout, PageSize::k4K);
    release_host(memory, 64);
    EXPECT_EQ(count_resident_pages(memory.regions()[0].bytes()), 0U);
}

TEST(ReleaseHost, OfNoMemoryDoesNothing) {
    release_host(GuestMemory(std::span<const GuestRange>{}, PageSize::k4K), 2);
}

} // namespace
} // namespace vmm::prefault
