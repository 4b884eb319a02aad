#include "vmm/guest/heartbeat.hpp"

#include <gtest/gtest.h>

#include <limits>

namespace vmm::guest {
namespace {

constexpr std::uint64_t kMs = 1'000'000;

TEST(GuestTimeCounts, QuantilesAreAtMostASixteenthTooHighAndTheMostIsExact) {
    TimeCounts counts;
    for (std::uint64_t value = 1; value <= 100'000; ++value) {
        counts.note(value);
    }
    EXPECT_EQ(counts.count(), 100'000U);
    EXPECT_EQ(counts.most(), 100'000U);
    EXPECT_GE(counts.quantile(50), 50'000U);
    EXPECT_LE(counts.quantile(50), 50'000U * 17 / 16);
    EXPECT_GE(counts.quantile(99), 99'000U);
    EXPECT_LE(counts.quantile(99), 100'000U);
    EXPECT_EQ(counts.quantile(100), 100'000U);
}

TEST(GuestTimeCounts, SmallTimesAreExactAndTheLongestAreCounted) {
    TimeCounts counts;
    for (const std::uint64_t value : {std::uint64_t{0}, std::uint64_t{7}, std::numeric_limits<std::uint64_t>::max()}) {
        counts.note(value);
    }
    EXPECT_EQ(counts.quantile(1), 0U);
    EXPECT_EQ(counts.quantile(50), 7U);
    EXPECT_EQ(counts.quantile(100), std::numeric_limits<std::uint64_t>::max());
    EXPECT_EQ(TimeCounts().quantile(50), 0U);
}

TEST(GuestHeartbeat, NotesByHowMuchABeatIsLate) {
    Heartbeat heartbeat(kMs, 0);
    EXPECT_FALSE(heartbeat.look(kMs - 1));
    EXPECT_TRUE(heartbeat.look(kMs + 5));
    EXPECT_EQ(heartbeat.due(), 2 * kMs);
    EXPECT_FALSE(heartbeat.look(2 * kMs - 1));
    EXPECT_TRUE(heartbeat.look(2 * kMs));
    const HeartbeatReport report = heartbeat.take(3 * kMs);
    EXPECT_EQ(report.beats, 2U);
    EXPECT_EQ(report.late_p50_ns, 0U);
    EXPECT_EQ(report.late_max_ns, 5U);
    EXPECT_EQ(report.backward, 0U);
    EXPECT_EQ(heartbeat.take(4 * kMs).beats, 0U) << "it counts anew";
}

TEST(GuestHeartbeat, EachBeatOfATimeWithoutLooksCounts) {
    Heartbeat heartbeat(kMs, 0);
    const std::uint64_t woken = 101 * kMs; // 100 ms after the first was due
    unsigned beats = 0;
    while (heartbeat.look(woken)) {
        ++beats;
    }
    EXPECT_EQ(beats, 101U);
    const HeartbeatReport report = heartbeat.take(woken);
    EXPECT_EQ(report.late_max_ns, 100 * kMs);
    EXPECT_GE(report.late_p50_ns, 50 * kMs);
    EXPECT_LE(report.late_p50_ns, 50 * kMs * 17 / 16);
}

TEST(GuestHeartbeat, YearsWithoutALookAreOneBeat) {
    Heartbeat heartbeat(kMs, 0);
    const std::uint64_t woken = std::uint64_t{1} << 62;
    EXPECT_TRUE(heartbeat.look(woken));
    EXPECT_FALSE(heartbeat.look(woken));
    EXPECT_EQ(heartbeat.take(woken).late_max_ns, woken - kMs);
}

TEST(GuestHeartbeat, TicksOfAnyRateAreTold) {
    Heartbeat heartbeat(3'000'000, 0); // 3 GHz
    EXPECT_TRUE(heartbeat.look(3'000'000 + 1'500));
    EXPECT_EQ(heartbeat.take(0).late_max_ns, 500U);
}

TEST(GuestHeartbeat, AClockThatGoesBackIsCountedAndBeatsGoOn) {
    Heartbeat heartbeat(kMs, 1000 * kMs);
    EXPECT_FALSE(heartbeat.look(1000 * kMs + 10));
    EXPECT_FALSE(heartbeat.look(1000 * kMs + 9));
    EXPECT_FALSE(heartbeat.look(5 * kMs)) << "by nearly a second";
    EXPECT_FALSE(heartbeat.look(6 * kMs - 1));
    EXPECT_TRUE(heartbeat.look(6 * kMs)) << "no second is waited for";
    EXPECT_EQ(heartbeat.take(6 * kMs).backward, 2U);
}

TEST(GuestHeartbeat, ItsLineHasMicroseconds) {
    EXPECT_EQ(heartbeat_line({1000, 110, 12'345, 1'000'000, 0}).text(),
              "heartbeat beats=1000 late_p50_us=0.11 late_p99_us=12.34 late_max_us=1000.00 backward=0");
}

} // namespace
} // namespace vmm::guest
