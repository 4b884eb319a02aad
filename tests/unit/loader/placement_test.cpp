#include "loader/placement.hpp"
#include "support/host_guest_range.hpp"

#include <gtest/gtest.h>

#include <array>

#include "support/loader_images.hpp"

namespace vmm::loader {
namespace {

using testing::error_of;
using vmm::testing::range;

/// 0x0-0x9ffff and 0x100000-0x4fffff.
Placement two_pieces_of_ram() {
    const std::array ram{range(0, 0xa0000), range(0x100000, 4 * kMiB)};
    return Placement{ram};
}

std::string claim_error(Placement& placement, GuestRange taken) {
    return error_of([&] {
        placement.claim(taken, "the kernel vmlinux");
        return 0;
    });
}

TEST(Placement, OverlapNamesBothParties) {
    Placement placement = two_pieces_of_ram();
    placement.claim(range(0x7000, 0x1000), "the zero page");
    EXPECT_EQ(claim_error(placement, range(0x1000, 0x8000)),
              "the kernel vmlinux (0x1000-0x8fff) overlaps the zero page (0x7000-0x7fff)");
    EXPECT_NE(claim_error(placement, range(0x7fff, 1)), "");
    EXPECT_EQ(claim_error(placement, range(0x8000, 1)), "");
    EXPECT_EQ(claim_error(placement, range(0x6fff, 1)), "");
}

TEST(Placement, RangeThatIsNotRamNamesTheRam) {
    Placement placement = two_pieces_of_ram();
    EXPECT_EQ(claim_error(placement, range(0x400000, 0x200000)),
              "the kernel vmlinux (0x400000-0x5fffff) does not fit into guest memory 0x0-0x9ffff, 0x100000-0x4fffff: "
              "give the guest more memory (Config::memory_bytes)");
    EXPECT_NE(claim_error(placement, range(0x9f000, 0x2000)), "");
    EXPECT_NE(claim_error(placement, range(UINT64_MAX, 2)), "");
}

TEST(Placement, RefusedClaimTakesNothing) {
    Placement placement = two_pieces_of_ram();
    placement.claim(range(0x7000, 0x1000), "the zero page");
    EXPECT_NE(claim_error(placement, range(0x7000, 0x4000)), "");
    EXPECT_TRUE(placement.is_free(range(0x8000, 0x3000)));
}

TEST(Placement, RamThatTouchesIsOnePiece) {
    const std::array ram{range(0, kMiB), range(kMiB, kMiB)};
    EXPECT_TRUE(Placement{ram}.is_free(range(0, 2 * kMiB)));
}

TEST(Placement, FindBelowGivesTheHighestFreePlace) {
    Placement placement = two_pieces_of_ram();
    EXPECT_EQ(placement.find_below(0x1800, 0x1000, GuestAddress{4 * kGiB}), GuestAddress{0x4fe000});
    placement.claim(range(0x4ff000, 0x1000), "something");
    EXPECT_EQ(placement.find_below(0x1800, 0x1000, GuestAddress{4 * kGiB}), GuestAddress{0x4fd000});
    EXPECT_EQ(placement.find_below(0x1000, 0x1000, GuestAddress{0x300fff}), GuestAddress{0x2ff000});
}

TEST(Placement, FindBelowGoesDownOverWhatIsTaken) {
    Placement placement = two_pieces_of_ram();
    placement.claim(range(0x100000, 4 * kMiB), "everything above 1 MiB");
    EXPECT_EQ(placement.find_below(0x1000, 0x1000, GuestAddress{4 * kGiB}), GuestAddress{0x9f000});
    EXPECT_EQ(placement.find_below(0xa0001, 1, GuestAddress{4 * kGiB}), std::nullopt);
}

TEST(Placement, FindAboveGivesTheLowestFreePlace) {
    Placement placement = two_pieces_of_ram();
    placement.claim(range(0x100000, 0x1001), "something");
    EXPECT_EQ(placement.find_above(0x1000, 0x1000, range(0x100000, kGiB)), GuestAddress{0x102000});
    EXPECT_EQ(placement.find_above(0x1000, 0x1000, range(0x9f001, kGiB)), GuestAddress{0x102000});
    EXPECT_EQ(placement.find_above(4 * kMiB, 1, range(0, kGiB)), std::nullopt);
}

TEST(Placement, LargestFreePieceIsTheOneBelowTheLimit) {
    Placement placement = two_pieces_of_ram();
    EXPECT_EQ(placement.largest_free_below(GuestAddress{4 * kGiB}), 4 * kMiB);
    placement.claim(range(0x200000, 0x1000), "something");
    EXPECT_EQ(placement.largest_free_below(GuestAddress{4 * kGiB}), 0x2ff000U);
    EXPECT_EQ(placement.largest_free_below(GuestAddress{0x1000}), 0x1000U);
    EXPECT_EQ(placement.largest_free_below(GuestAddress{0}), 0U);
}

} // namespace
} // namespace vmm::loader
