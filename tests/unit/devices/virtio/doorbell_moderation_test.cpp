#include "devices/virtio/doorbell_moderation.hpp"

#include <gtest/gtest.h>

#include <chrono>

namespace vmm::devices::virtio {
namespace {

using namespace std::chrono_literals;

/// A driver and a device, with a clock that the test turns.
class DoorbellModerationTest : public ::testing::Test {
  protected:
    /// `count` requests have come `later`, and the device has taken them.
    unsigned take(DoorbellModeration::Duration later, unsigned count) {
        now += later;
        return moderation.after(now, count);
    }
    /// A stream until as many are waited for as ever.
    void stream() {
        for (unsigned wanted = 1; wanted < DoorbellModeration::kMost;) {
            wanted = take(wanted * 10us, wanted + 1);
        }
    }

    DoorbellModeration moderation;
    DoorbellModeration::Clock::time_point now{1h};
};

TEST_F(DoorbellModerationTest, ADriverWithOneRequestAtATimeIsNeverWaitedFor) {
    for (int i = 0; i < 1000; ++i) {
        EXPECT_EQ(take(10us, 1), 1U);
    }
}

TEST_F(DoorbellModerationTest, RequestsThatComeTogetherNowAndThenAreNoStream) {
    for (int i = 0; i < 1000; ++i) {
        EXPECT_EQ(take(10ms, 4), 1U);
    }
}

TEST_F(DoorbellModerationTest, InAStreamEverMoreAreWaitedForUpToAnEnd) {
    unsigned before = 1;
    for (int i = 0; i < 1000; ++i) {
        const unsigned wanted = take(before * 10us, before + 1);
        EXPECT_GE(wanted, before);
        EXPECT_LE(wanted, DoorbellModeration::kMost);
        before = wanted;
    }
    EXPECT_EQ(before, DoorbellModeration::kMost);
}

TEST_F(DoorbellModerationTest, ARequestWaitsNoLongerThanTwiceTheUsualTimeOrTheLongestWait) {
    stream();
    EXPECT_GT(moderation.deadline(), now);
    EXPECT_LE(moderation.deadline(), now + DoorbellModeration::kMost * 2 * 500us);
    EXPECT_LE(moderation.deadline(), now + DoorbellModeration::kLongestWait);
}

TEST_F(DoorbellModerationTest, OneThatIsWaitedForInVainIsHalfOfThoseThatCameTheNextTime) {
    stream();
    const auto late = moderation.deadline() - now;
    EXPECT_EQ(take(late, 6), 3U);
    EXPECT_EQ(take(moderation.deadline() - now, 1), 1U);
}

TEST_F(DoorbellModerationTest, AStreamEndsWhenNothingHasCome) {
    stream();
    EXPECT_EQ(take(1us, 0), DoorbellModeration::kMost) << "another queue had work: they may still come";
    EXPECT_EQ(take(moderation.deadline() - now, 0), 1U);
    EXPECT_EQ(take(10us, 1), 1U);
}

TEST_F(DoorbellModerationTest, FewerThatAreTakenInTimeChangeNothing) {
    stream();
    EXPECT_EQ(take(1us, 1), DoorbellModeration::kMost);
}

TEST_F(DoorbellModerationTest, AResetForgetsTheStream) {
    stream();
    moderation.reset();
    EXPECT_EQ(take(10us, 1), 1U);
}

} // namespace
} // namespace vmm::devices::virtio
