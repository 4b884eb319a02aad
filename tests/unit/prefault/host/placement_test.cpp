#include "prefault/host/placement.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace vmm::prefault {
namespace {

using Placed = std::vector<PlacedRange>;
using Ranges = std::vector<GuestRange>;

GuestRange range(std::uint64_t base, std::uint64_t size) {
    return {GuestAddress{base}, size};
}

PlacedRange on_node(unsigned node, std::uint64_t base, std::uint64_t size) {
    return {range(base, size), node};
}

PlacedRange anywhere(std::uint64_t base, std::uint64_t size) {
    return {range(base, size), std::nullopt};
}

const Placed kTwoNodes{on_node(0, 0, 64 * kMiB), on_node(1, 4 * kGiB, 64 * kMiB)};

TEST(Intersection, OfEverythingIsAll) {
    const Ranges everything{range(0, 16 * kTiB)};
    EXPECT_EQ(intersection(kTwoNodes, everything), kTwoNodes);
}

TEST(Intersection, KeepsTheNodeOfEachPart) {
    const Placed adjacent{on_node(0, 0, 4 * kMiB), on_node(1, 4 * kMiB, 4 * kMiB)};
    EXPECT_EQ(intersection(adjacent, Ranges{range(2 * kMiB, 4 * kMiB)}),
              (Placed{on_node(0, 2 * kMiB, 2 * kMiB), on_node(1, 4 * kMiB, 2 * kMiB)}));
}

TEST(Intersection, TakesSeveralPartsOfOneRange) {
    EXPECT_EQ(intersection(Placed{anywhere(0, kGiB)}, Ranges{range(0, 4096), range(kMiB, 4096)}),
              (Placed{anywhere(0, 4096), anywhere(kMiB, 4096)}));
}

TEST(Intersection, IsInTheOrderOfWhatIsPlaced) {
    EXPECT_EQ(intersection(kTwoNodes, Ranges{range(4 * kGiB, 4096), range(0, 4096)}),
              (Placed{on_node(0, 0, 4096), on_node(1, 4 * kGiB, 4096)}));
}

TEST(Intersection, WithWhatOnlyTouchesIsNothing) {
    const Placed placed{anywhere(kGiB, kGiB)};
    EXPECT_EQ(intersection(placed, Ranges{range(0, kGiB), range(2 * kGiB, kGiB)}), Placed{});
    EXPECT_EQ(intersection(placed, Ranges{}), Placed{});
    EXPECT_EQ(intersection({}, Ranges{range(0, kGiB)}), Placed{});
}

TEST(TotalBytes, AddUpAllRanges) {
    EXPECT_EQ(total_bytes(kTwoNodes), 128 * kMiB);
    EXPECT_EQ(total_bytes({}), 0U);
}

} // namespace
} // namespace vmm::prefault
