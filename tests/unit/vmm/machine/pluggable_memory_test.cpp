#include "vmm/machine/pluggable_memory.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "support/host_errors.hpp"
#include "vmm/machine/memory_map.hpp"

namespace vmm {
namespace {

using testing::error_of;
using testing::mentions;

prefault::NumaTopology topology_of(unsigned nodes) {
    prefault::NumaTopology topology;
    for (unsigned id = 0; id < nodes; ++id) {
        topology.nodes.push_back({.id = id, .cpus = {id}, .memory_bytes = 64 * kGiB});
    }
    return topology;
}

Config growing(std::uint64_t bytes, std::uint64_t most) {
    Config config;
    config.memory_bytes = bytes;
    config.memory_max_bytes = most;
    return config;
}

TEST(PluggableParts, ThereAreNoneUnlessTheGuestGrows) {
    EXPECT_TRUE(pluggable_parts(growing(kGiB, 0), topology_of(2)).empty());
    EXPECT_TRUE(pluggable_parts(growing(kGiB, kGiB), topology_of(2)).empty());
    EXPECT_EQ(pluggable_parts(growing(kGiB, 2 * kGiB), topology_of(2)).size(), 1U);
}

TEST(PluggableParts, BeginAboveAllElseAtWhatLinuxTakesForABlock) {
    for (const std::uint64_t bytes : {256 * kMiB, 3 * kGiB, 4 * kGiB, 5 * kGiB + 2 * kMiB}) {
        const auto parts = pluggable_parts(growing(bytes, bytes + 4 * kGiB), topology_of(1));
        ASSERT_EQ(parts.size(), 1U);
        const GuestRange region = parts.front().device.region;
        EXPECT_EQ(to_integer(region.base) % (2 * kGiB), 0U);
        EXPECT_GE(to_integer(region.base), memory_map::address_space_bytes(bytes));
        EXPECT_EQ(region.size, 4 * kGiB);
    }
}

TEST(PluggableParts, ThereIsOneForEachNodeThatMemoryIsSplitOver) {
    Config config = growing(kGiB, kGiB + 6 * kMiB);
    config.numa.kind = prefault::NumaPolicy::Kind::kSplit;
    const auto parts = pluggable_parts(config, topology_of(2));
    ASSERT_EQ(parts.size(), 2U);
    EXPECT_EQ(parts[0].device.region.size, 4 * kMiB);
    EXPECT_EQ(parts[1].device.region.size, 2 * kMiB);
    EXPECT_EQ(parts[1].device.region.base, parts[0].device.region.end());
    EXPECT_EQ(parts[0].host_node, 0U);
    EXPECT_EQ(parts[1].host_node, 1U);
    EXPECT_EQ(parts[1].device.node, 1U);
}

TEST(PluggableParts, BlocksGrowWithTheRegionSoThatThereAreFew) {
    EXPECT_EQ(pluggable_block_bytes(2 * kMiB, PageSize::kThp), 2 * kMiB);
    EXPECT_EQ(pluggable_block_bytes(16 * kGiB, PageSize::kThp), 2 * kMiB);
    EXPECT_EQ(pluggable_block_bytes(16 * kGiB + 1, PageSize::kThp), 4 * kMiB);
    EXPECT_EQ(pluggable_block_bytes(kTiB, PageSize::k4K), 128 * kMiB);
    EXPECT_EQ(pluggable_block_bytes(kGiB, PageSize::k1G), kGiB);
}

TEST(SharesOfRequest, AreEqualAsFarAsTheyGo) {
    Config config = growing(kGiB, kGiB + 10 * kMiB);
    config.numa.kind = prefault::NumaPolicy::Kind::kSplit;
    const auto parts = pluggable_parts(config, topology_of(2)); // of 6 and 4 MiB
    const auto shares = [&](std::uint64_t bytes) { return shares_of_request(parts, bytes); };
    EXPECT_EQ(shares(0), (std::vector<std::uint64_t>{0, 0}));
    EXPECT_EQ(shares(2 * kMiB), (std::vector<std::uint64_t>{2 * kMiB, 0}));
    EXPECT_EQ(shares(8 * kMiB), (std::vector<std::uint64_t>{4 * kMiB, 4 * kMiB}));
    EXPECT_EQ(shares(10 * kMiB), (std::vector<std::uint64_t>{6 * kMiB, 4 * kMiB}));
    EXPECT_TRUE(mentions(error_of([&] { return shares(12 * kMiB).size(); }), "it can have 10 MiB more"));
    EXPECT_TRUE(mentions(error_of([&] { return shares(kMiB).size(); }), "blocks of 2 MiB"));
}

} // namespace
} // namespace vmm
