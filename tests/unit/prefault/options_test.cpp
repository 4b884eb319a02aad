#include "prefault/options.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "support/host_errors.hpp"

namespace vmm::prefault {
namespace {

using testing::error_of;
using testing::mentions;

/// Why a guest of 4 GiB, with memory on both sides of the hole, is refused `options`; empty if it is not.
std::string refusal(const Options& options, PageSize page_size = PageSize::k4K) {
    const std::array ram{GuestRange{GuestAddress{0}, 3 * kGiB}, GuestRange{GuestAddress{4 * kGiB}, kGiB}};
    return error_of([&]() -> int {
        check_options(options, ram, page_size);
        return 0;
    });
}

std::string refusal_of_ranges(std::vector<GuestRange> ranges, PageSize page_size = PageSize::k4K) {
    return refusal({.ranges = std::move(ranges)}, page_size);
}

GuestRange range(std::uint64_t base, std::uint64_t size) {
    return {GuestAddress{base}, size};
}

TEST(PrefaultRanges, MayBeAnyPagesOfMemory) {
    EXPECT_EQ(refusal_of_ranges({}), "");
    EXPECT_EQ(refusal_of_ranges({range(0, 3 * kGiB), range(4 * kGiB, kGiB)}), "");
    EXPECT_EQ(refusal_of_ranges({range(4 * kGiB, 4096), range(8192, 4096), range(4096, 4096)}), "");
    EXPECT_EQ(refusal_of_ranges({range(2 * kMiB, 4 * kMiB)}, PageSize::k2M), "");
}

TEST(PrefaultRanges, AreNotEmpty) {
    EXPECT_TRUE(mentions(refusal_of_ranges({range(4096, 0)}), "it is empty"));
}

TEST(PrefaultRanges, AreWholePages) {
    EXPECT_TRUE(mentions(refusal_of_ranges({range(1, 4096)}), "a multiple of the page size, 4 KiB"));
    EXPECT_TRUE(mentions(refusal_of_ranges({range(0, 4097)}), "a multiple of the page size, 4 KiB"));
    EXPECT_TRUE(mentions(refusal_of_ranges({range(0, 4096)}, PageSize::k2M), "a multiple of the page size, 2 MiB"));
    EXPECT_TRUE(
        mentions(refusal_of_ranges({range(kMiB, 2 * kMiB)}, PageSize::k2M), "a multiple of the page size, 2 MiB"));
    EXPECT_TRUE(
        mentions(refusal_of_ranges({range(0, 512 * kMiB)}, PageSize::k1G), "a multiple of the page size, 1 GiB"));
}

TEST(PrefaultRanges, MayCutTransparentHugePages) {
    EXPECT_EQ(refusal_of_ranges({range(4096, 4096)}, PageSize::kThp), "");
}

class RangeThatIsNotAllRam : public ::testing::TestWithParam<GuestRange> {};

TEST_P(RangeThatIsNotAllRam, IsRefusedWithWhatThereIs) {
    const std::string error = refusal_of_ranges({GetParam()});
    EXPECT_TRUE(mentions(error, "it is not all RAM")) << error;
    EXPECT_TRUE(mentions(error, "3 GiB")) << error;
    EXPECT_TRUE(mentions(error, "5 GiB")) << error;
}

INSTANTIATE_TEST_SUITE_P(Ranges, RangeThatIsNotAllRam,
                         ::testing::Values(range(3 * kGiB, 4096),                // in the hole
                                           range(3 * kGiB - 4096, 8192),         // into it
                                           range(4 * kGiB - 4096, 8192),         // out of it
                                           range(0, 5 * kGiB),                   // across it
                                           range(5 * kGiB, 4096),                // behind all
                                           range(4 * kGiB, kGiB + 4096),         // beyond the end
                                           range(UINT64_MAX - 4095, 4096),       // at the top of all addresses
                                           range(UINT64_MAX - 4095, 8192),       // around it
                                           range(4 * kGiB, UINT64_MAX - 4095))); // nearly all there is

TEST(PrefaultRanges, DoNotOverlap) {
    const std::string error = refusal_of_ranges({range(0, 8192), range(kMiB, 4096), range(4096, 8192)});
    EXPECT_TRUE(mentions(error, "cannot prefault 0x1000-0x2fff: it overlaps 0x0-0x1fff")) << error;
    EXPECT_TRUE(mentions(refusal_of_ranges({range(0, 4096), range(0, 4096)}), "it overlaps"));
}

TEST(PrefaultOptions, HaveAtLeastOneWorkerAndNotTooMany) {
    for (const unsigned workers : {0U, kMaxWorkers + 1}) {
        const std::string error = refusal({.workers = workers});
        EXPECT_TRUE(mentions(error, "prefault workers: 1 to 512")) << error;
    }
    EXPECT_EQ(refusal({.workers = kMaxWorkers}), "");
}

TEST(PrefaultOptions, AreNotForCpusThatThisProcessMayNotUse) {
    EXPECT_TRUE(mentions(refusal({.cpus = {8000}}), "cannot use CPU 8000"));
}

} // namespace
} // namespace vmm::prefault
