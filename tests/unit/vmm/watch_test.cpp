#include "vmm/watch.hpp"

#include <gtest/gtest.h>

#include <cstdint>

namespace vmm {
namespace {

TEST(WatchLine, SaysWhatIsMappedAndTheNewFaultsOfEachVcpu) {
    EXPECT_EQ(to_line({3.0, {12, 34, 56}, {7, 0, 2}}),
              "watch: 3 s, mapped 56 x 1G + 34 x 2M + 12 x 4K, new faults 9 (vcpu0 7, vcpu1 0, vcpu2 2)");
}

TEST(WatchLine, OfOneVcpu) {
    EXPECT_EQ(to_line({1.0, {131072, 0, 0}, {5}}),
              "watch: 1 s, mapped 0 x 1G + 0 x 2M + 131072 x 4K, new faults 5 (vcpu0 5)");
}

TEST(WatchLine, IsInWholeSeconds) {
    EXPECT_EQ(to_line({59.96, {}, {}}), "watch: 60 s, mapped 0 x 1G + 0 x 2M + 0 x 4K, new faults 0");
}

TEST(WatchLine, KeepsLargeCountsExact) {
    EXPECT_EQ(to_line({1.0, {UINT64_MAX, 0, 0}, {UINT64_MAX - 1, 1}}),
              "watch: 1 s, mapped 0 x 1G + 0 x 2M + 18446744073709551615 x 4K, new faults 18446744073709551615 "
              "(vcpu0 18446744073709551614, vcpu1 1)");
}

TEST(WatchLine, IsOneLine) {
    EXPECT_EQ(to_line({1.0, {1, 2, 3}, {4, 5}}).find('\n'), std::string::npos);
}

} // namespace
} // namespace vmm
