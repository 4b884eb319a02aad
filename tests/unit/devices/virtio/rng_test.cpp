// virtio-rng (virtio 1.2, 5.4).

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "devices/virtio/rng.hpp"
#include "support/devices_hostile_driver.hpp"
#include "support/devices_virtio_driver.hpp"

namespace vmm::devices::testing {
namespace {

using virtio::Rng;

/// Bytes that cannot be mistaken for untouched memory.
Rng::Entropy all_ones() {
    return [](std::span<std::byte> bytes) {
        std::ranges::fill(bytes, std::byte{0xff});
        return true;
    };
}

bool works(VirtioRig& rig) {
    const GuestAddress at = rig.allocate(64);
    rig.queue(0).add({{at, 64, kWritable}});
    rig.ring(0);
    const auto used = rig.wait_for_used(0);
    return used && used->length == 64;
}

TEST(VirtioRng, FillsTheWholeBuffer) { // 5.4.6.2
    Rng rng("rng0", all_ones());
    VirtioRig rig(rng);
    ASSERT_TRUE(rig.start());
    const GuestAddress at = rig.allocate(64);
    rig.queue(0).add({{at, 10, kWritable}, {at + 20, 1, kWritable}});
    rig.ring(0);
    const auto used = rig.wait_for_used(0);
    ASSERT_TRUE(used);
    EXPECT_EQ(used->length, 11U);
    EXPECT_EQ(*rig.memory().load<std::uint64_t>(at + 2), UINT64_MAX);
    EXPECT_EQ(*rig.memory().load<std::uint8_t>(at + 10), 0);
    EXPECT_EQ(*rig.memory().load<std::uint8_t>(at + 20), 0xff);
    EXPECT_EQ(rig.irq().take(), 1U);
}

TEST(VirtioRng, HasBytesOfTheHostsThatDiffer) {
    Rng rng("rng0");
    VirtioRig rig(rng);
    ASSERT_TRUE(rig.start());
    const GuestAddress at = rig.allocate(32);
    rig.queue(0).add({{at, 32, kWritable}});
    rig.ring(0);
    ASSERT_TRUE(rig.wait_for_used(0));
    EXPECT_NE(*rig.memory().load<std::uint64_t>(at), *rig.memory().load<std::uint64_t>(at + 8));
}

TEST(VirtioRng, GivesOnlySoMuchAtOnce) {
    Rng rng("rng0", all_ones());
    VirtioRig rig(rng);
    ASSERT_TRUE(rig.start());
    const GuestAddress at = rig.allocate(1 << 20);
    rig.queue(0).add({{at, 1 << 20, kWritable}});
    rig.ring(0);
    EXPECT_EQ(rig.wait_for_used(0)->length, Rng::kMostBytes);
}

TEST(VirtioRng, AnswersARequestWithoutRoomWithNothing) {
    Rng rng("rng0", all_ones());
    VirtioRig rig(rng);
    ASSERT_TRUE(rig.start());
    const GuestAddress at = rig.allocate(16);
    rig.queue(0).add({{at, 16}});
    rig.ring(0);
    EXPECT_EQ(rig.wait_for_used(0)->length, 0U);
    EXPECT_TRUE(rig.is_alive());
}

TEST(VirtioRng, SaysSoWhereTheHostHasNone) {
    Rng rng("rng0", [](std::span<std::byte>) { return false; });
    VirtioRig rig(rng);
    ASSERT_TRUE(rig.start());
    rig.queue(0).add({{rig.allocate(16), 16, kWritable}});
    rig.ring(0);
    EXPECT_EQ(rig.wait_for_used(0)->length, 0U);
}

TEST(VirtioRng, TellsOfWhatItAnsweredBeforeARequestThatBreaksARule) {
    Rng rng("rng0", all_ones());
    VirtioRig rig(rng);
    ASSERT_TRUE(rig.start());
    rig.queue(0).add({{rig.allocate(16), 16, kWritable}});
    rig.queue(0).publish(0xffff);
    rig.driver().ring(0);
    rig.settle();
    EXPECT_TRUE(rig.needs_reset());
    EXPECT_EQ(rig.queue(0).used_index(), 1U);
    EXPECT_EQ(rig.driver().take_interrupts(), 3U); // a used buffer, and a change of the configuration
}

class RngHostile : public ::testing::TestWithParam<HostileCase> {};

TEST_P(RngHostile, DriverIsAnsweredAndNothingElseIsTouched) {
    run_hostile_case(GetParam(), {.make = [] { return std::make_unique<Rng>("rng0", all_ones()); },
                                  .queue = 0,
                                  .looks_at_once = true,
                                  .request =
                                      [](VirtioRig& rig) {
                                          rig.queue(0).add({{rig.allocate(64), 64, kWritable}});
                                      },
                                  .works = works});
}

INSTANTIATE_TEST_SUITE_P(Every, RngHostile, ::testing::ValuesIn(hostile_cases()), hostile_case_name);

} // namespace
} // namespace vmm::devices::testing
