#include "vmm/state/memory_layout.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "support/host_errors.hpp"
#include "support/host_guest_range.hpp"

namespace vmm {
namespace {

using testing::error_of;
using testing::mentions;
using testing::range;

std::string refusal_of(const std::vector<GuestRange>& memory) {
    return error_of([&] { return MemoryLayout(memory); });
}

TEST(MemoryLayout, PutsEachRegionAtAWholeChunk) {
    const MemoryLayout layout(std::vector{range(0, 3 * kMiB), range(4 * kGiB, 4 * kMiB), range(8 * kGiB, 0x1000)});
    const std::vector<MemoryPiece> regions{
        {range(0, 3 * kMiB), 0}, {range(4 * kGiB, 4 * kMiB), 4 * kMiB}, {range(8 * kGiB, 0x1000), 8 * kMiB}};
    EXPECT_EQ(layout.regions(), regions);
    EXPECT_EQ(layout.file_bytes(), 10 * kMiB);
    EXPECT_EQ(layout.memory_bytes(), 7 * kMiB + 0x1000);
    ASSERT_EQ(layout.chunks(), 5U);
    EXPECT_EQ(layout.chunk(0), (MemoryPiece{range(0, 2 * kMiB), 0}));
    EXPECT_EQ(layout.chunk(1), (MemoryPiece{range(2 * kMiB, kMiB), 2 * kMiB}));
    EXPECT_EQ(layout.chunk(2), (MemoryPiece{range(4 * kGiB, 2 * kMiB), 4 * kMiB}));
    EXPECT_EQ(layout.chunk(3), (MemoryPiece{range(4 * kGiB + 2 * kMiB, 2 * kMiB), 6 * kMiB}));
    EXPECT_EQ(layout.chunk(4), (MemoryPiece{range(8 * kGiB, 0x1000), 8 * kMiB}));
}

TEST(MemoryLayout, TakesRegionsThatTouch) {
    EXPECT_EQ(MemoryLayout(std::vector{range(0, kMiB), range(kMiB, kMiB)}).chunks(), 2U);
}

TEST(MemoryLayout, RefusesWhatNoGuestHas) {
    EXPECT_TRUE(mentions(refusal_of({}), "0 regions"));
    EXPECT_TRUE(mentions(refusal_of({range(0, 0)}), "whole pages"));
    EXPECT_TRUE(mentions(refusal_of({range(0x800, 0x1000)}), "whole pages"));
    EXPECT_TRUE(mentions(refusal_of({range(0, 0x1800)}), "whole pages"));
    EXPECT_TRUE(mentions(refusal_of({range(kMiB, kMiB), range(0, kMiB)}), "does not come after"));
    EXPECT_TRUE(mentions(refusal_of({range(0, 2 * kMiB), range(kMiB, kMiB)}), "does not come after"));
    EXPECT_TRUE(mentions(refusal_of({range(UINT64_MAX - 0xfff, 0x1000)}), "beyond"));
    EXPECT_TRUE(mentions(refusal_of({range(0x1000, UINT64_MAX - 0xfff)}), "beyond"));
    EXPECT_TRUE(mentions(refusal_of({range(0, 17 * kTiB)}), "16 TiB"));
    std::vector<GuestRange> many;
    for (std::uint64_t i = 0; i < 17; ++i) {
        many.push_back(range(i * kMiB, kMiB));
    }
    EXPECT_TRUE(mentions(refusal_of(many), "17 regions"));
}

} // namespace
} // namespace vmm
