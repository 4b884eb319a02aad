#include "prefault/host/pace.hpp"

#include <gtest/gtest.h>

#include "support/prefault_stop.hpp"

namespace vmm::prefault {
namespace {

using namespace std::chrono_literals;

constexpr Pace::Clock::time_point kStart{100s};

TEST(Pace, WithoutALimitNothingWaits) {
    Pace pace(0);
    EXPECT_EQ(pace.next_after(UINT64_MAX, kStart), kStart);
}

TEST(Pace, WhatIsDoneTakesItsTime) {
    Pace pace(1000);
    EXPECT_EQ(pace.next_after(500, kStart), kStart + 500ms);
}

TEST(Pace, SeveralThreadsShareTheRate) {
    Pace pace(1000);
    EXPECT_EQ(pace.next_after(1000, kStart), kStart + 1s);
    EXPECT_EQ(pace.next_after(1000, kStart), kStart + 2s);
}

TEST(Pace, TimeInWhichNothingWasDoneIsNotSavedUp) {
    Pace pace(1000);
    EXPECT_EQ(pace.next_after(1000, kStart), kStart + 1s);
    EXPECT_EQ(pace.next_after(1000, kStart + 1min), kStart + 1min + 1s);
}

TEST(Pace, StopEndsAWait) {
    Pace pace(1);
    pace.wait_after(UINT32_MAX, testing::stop_requested_already()); // otherwise it would take a century
}

} // namespace
} // namespace vmm::prefault
