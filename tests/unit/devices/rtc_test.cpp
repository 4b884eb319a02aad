#include "devices/rtc.hpp"

#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <thread>
#include <vector>

#include "kvm/host/error.hpp"
#include "support/devices_guest_access.hpp"

namespace vmm::devices {
namespace {

using namespace std::chrono_literals;
using std::chrono::sys_days;
using std::chrono::system_clock;
using testing::HostileGuest;
using testing::inb;
using testing::outb;

constexpr unsigned kSeconds = 0x00;
constexpr unsigned kSecondsAlarm = 0x01;
constexpr unsigned kMinutes = 0x02;
constexpr unsigned kHours = 0x04;
constexpr unsigned kDayOfWeek = 0x06;
constexpr unsigned kDay = 0x07;
constexpr unsigned kMonth = 0x08;
constexpr unsigned kYear = 0x09;
constexpr unsigned kA = 0x0a;
constexpr unsigned kB = 0x0b;
constexpr unsigned kC = 0x0c;
constexpr unsigned kD = 0x0d;
constexpr unsigned kCentury = Rtc::kCenturyIndex;

constexpr unsigned kUpdateInProgress = 0x80;
constexpr unsigned kDividerReset = 0x70; // as Linux writes it, RTC_DIV_RESET2
constexpr unsigned kNormalA = 0x26;
constexpr unsigned kSet = 0x80;
constexpr unsigned kBinary = 0x04;
constexpr unsigned k24Hours = 0x02;

unsigned read(Rtc& rtc, unsigned index) {
    outb(rtc, Rtc::kIndexOffset, index);
    return inb(rtc, Rtc::kDataOffset);
}

void write(Rtc& rtc, unsigned index, unsigned value) {
    outb(rtc, Rtc::kIndexOffset, index);
    outb(rtc, Rtc::kDataOffset, value);
}

/// Seconds, minutes, hours, day, month, year, century, as the registers show them.
using Shown = std::array<unsigned, 7>;
constexpr std::array<unsigned, 7> kShown = {kSeconds, kMinutes, kHours, kDay, kMonth, kYear, kCentury};

Shown show(Rtc& rtc) {
    Shown shown{};
    for (std::size_t i = 0; i < shown.size(); ++i) {
        shown[i] = read(rtc, kShown[i]);
    }
    return shown;
}

/// Sets the clock as Linux does, mc146818_set_time(): stopped by SET and by the divider, restored in that order.
void set(Rtc& rtc, const Shown& time) {
    const unsigned b = read(rtc, kB);
    write(rtc, kB, b | kSet);
    const unsigned a = read(rtc, kA);
    write(rtc, kA, a | kDividerReset);
    for (std::size_t i = 0; i < time.size(); ++i) {
        write(rtc, kShown[i], time[i]);
    }
    write(rtc, kB, b);
    write(rtc, kA, a);
}

class RtcTest : public ::testing::Test {
  protected:
    // A Tuesday.
    system_clock::time_point now = sys_days{std::chrono::November / 3 / 2026} + 13h + 45min + 7s;
    Rtc rtc{[this] { return now; }};
};

TEST_F(RtcTest, ShowsTheHostsTimeInBcdAnd24Hours) {
    EXPECT_EQ(show(rtc), (Shown{0x07, 0x45, 0x13, 0x03, 0x11, 0x26, 0x20}));
    EXPECT_EQ(read(rtc, kDayOfWeek), 3U) << "Sunday is 1";
}

TEST_F(RtcTest, ShowsTheHostsTimeInBinary) {
    write(rtc, kB, kBinary | k24Hours);
    EXPECT_EQ(show(rtc), (Shown{7, 45, 13, 3, 11, 26, 20}));
}

TEST_F(RtcTest, ShowsTwelveHoursWithPm) {
    const auto hour_at = [this](std::chrono::hours hour) {
        now = sys_days{std::chrono::November / 3 / 2026} + hour;
        return read(rtc, kHours);
    };
    write(rtc, kB, 0);
    EXPECT_EQ(hour_at(0h), 0x12U);
    EXPECT_EQ(hour_at(1h), 0x01U);
    EXPECT_EQ(hour_at(12h), 0x92U);
    EXPECT_EQ(hour_at(23h), 0x91U);
    write(rtc, kB, kBinary);
    EXPECT_EQ(hour_at(0h), 12U);
    EXPECT_EQ(hour_at(23h), 0x80U + 11U);
}

TEST_F(RtcTest, TimeGoesOn) {
    now += 53s;
    EXPECT_EQ(read(rtc, kSeconds), 0x00U);
    EXPECT_EQ(read(rtc, kMinutes), 0x46U);
}

TEST_F(RtcTest, UpdateIsAnnouncedShortlyBeforeTheSecondChanges) {
    now += 1s - 245us;
    EXPECT_EQ(read(rtc, kA), kNormalA);
    now += 1us;
    EXPECT_EQ(read(rtc, kA), kNormalA | kUpdateInProgress);
    EXPECT_EQ(read(rtc, kSeconds), 0x07U);
    now += 244us;
    EXPECT_EQ(read(rtc, kA), kNormalA) << "a guest that waits for the end of the update waits no longer than this";
    EXPECT_EQ(read(rtc, kSeconds), 0x08U);
}

TEST_F(RtcTest, SaysThatItsBatteryIsGoodAndThatNothingInterrupted) {
    EXPECT_EQ(read(rtc, kD), 0x80U);
    EXPECT_EQ(read(rtc, kC), 0U);
    write(rtc, kD, 0);
    write(rtc, kC, 0xff);
    EXPECT_EQ(read(rtc, kD), 0x80U);
    EXPECT_EQ(read(rtc, kC), 0U);
}

TEST_F(RtcTest, NmiMaskInTheIndexIsIgnored) {
    EXPECT_EQ(read(rtc, 0x80U | kMonth), 0x11U);
    EXPECT_EQ(rtc.state().index, kMonth);
}

TEST_F(RtcTest, IndexCannotBeReadBack) {
    outb(rtc, Rtc::kIndexOffset, kMonth);
    EXPECT_EQ(inb(rtc, Rtc::kIndexOffset), 0xffU);
}

TEST_F(RtcTest, WordToTheIndexPortSelectsAndWrites) {
    const std::array word{std::byte{0x40}, std::byte{0x99}};
    rtc.write(Rtc::kIndexOffset, word);
    EXPECT_EQ(read(rtc, 0x40), 0x99U);
}

TEST_F(RtcTest, MemoryAndAlarmAreKept) {
    for (const unsigned index : {kSecondsAlarm, 0x03U, 0x05U, 0x0eU, 0x0fU, 0x31U, 0x33U, 0x7fU}) {
        write(rtc, index, index ^ 0xffU);
    }
    for (const unsigned index : {kSecondsAlarm, 0x03U, 0x05U, 0x0eU, 0x0fU, 0x31U, 0x33U, 0x7fU}) {
        EXPECT_EQ(read(rtc, index), index ^ 0xffU);
    }
    EXPECT_EQ(read(rtc, kC), 0U);
}

TEST_F(RtcTest, GuestSetsItsClock) {
    set(rtc, {0x58, 0x59, 0x23, 0x31, 0x12, 0x99, 0x19});
    EXPECT_EQ(show(rtc), (Shown{0x58, 0x59, 0x23, 0x31, 0x12, 0x99, 0x19}));
    EXPECT_EQ(read(rtc, kDayOfWeek), 6U) << "a Friday, whatever the guest thinks";
    now += 2s;
    EXPECT_EQ(show(rtc), (Shown{0x00, 0x00, 0x00, 0x01, 0x01, 0x00, 0x20}));
}

TEST_F(RtcTest, FirstUpdateComesHalfASecondAfterTheDividerIsReleased) {
    // For this reason Linux sets the clock half a second past the full second.
    now += 123ms;
    set(rtc, {0x10, 0, 0, 1, 1, 0x27, 0x20});
    now += 499ms;
    EXPECT_EQ(read(rtc, kSeconds), 0x10U);
    now += 1ms;
    EXPECT_EQ(read(rtc, kSeconds), 0x11U);
}

TEST_F(RtcTest, SetBitAloneKeepsThePhaseOfTheSecond) {
    now += 900ms;
    write(rtc, kB, kSet | k24Hours);
    write(rtc, kSeconds, 0x30);
    now += 5s;
    EXPECT_EQ(read(rtc, kSeconds), 0x30U) << "stopped";
    write(rtc, kB, k24Hours);
    EXPECT_EQ(read(rtc, kSeconds), 0x30U);
    now += 100ms;
    EXPECT_EQ(read(rtc, kSeconds), 0x31U);
}

TEST_F(RtcTest, StoppedClockIsNeverInAnUpdate) {
    write(rtc, kB, kSet | k24Hours);
    now += 1s - 1us;
    EXPECT_EQ(read(rtc, kA) & kUpdateInProgress, 0U);
}

TEST_F(RtcTest, SingleRegisterCanBeSetWhileTheClockRuns) {
    write(rtc, kMinutes, 0x50);
    EXPECT_EQ(show(rtc), (Shown{0x07, 0x50, 0x13, 0x03, 0x11, 0x26, 0x20}));
}

TEST_F(RtcTest, ClockIsSetInTwelveHoursAndBinary) {
    write(rtc, kB, kBinary);
    set(rtc, {1, 2, 0x80U + 12U, 4, 5, 30, 20});
    write(rtc, kB, kBinary | k24Hours);
    EXPECT_EQ(read(rtc, kHours), 12U);
    write(rtc, kB, kBinary);
    set(rtc, {1, 2, 12, 4, 5, 30, 20});
    write(rtc, kB, kBinary | k24Hours);
    EXPECT_EQ(read(rtc, kHours), 0U);
}

TEST_F(RtcTest, DateThatDoesNotExistIsCarriedOver) {
    set(rtc, {0, 0, 0, 0x30, 0x02, 0x27, 0x20});
    EXPECT_EQ(show(rtc), (Shown{0, 0, 0, 0x02, 0x03, 0x27, 0x20}));
    set(rtc, {0, 0, 0, 0x01, 0x13, 0x27, 0x20});
    EXPECT_EQ(show(rtc), (Shown{0, 0, 0, 0x01, 0x01, 0x28, 0x20}));
}

TEST_F(RtcTest, LeapDayIsShown) {
    now = sys_days{std::chrono::February / 29 / 2028};
    EXPECT_EQ(show(rtc), (Shown{0, 0, 0, 0x29, 0x02, 0x28, 0x20}));
}

TEST_F(RtcTest, EveryHostTimeShowsAValidDate) {
    for (const auto time :
         {system_clock::time_point::min(), system_clock::time_point{}, system_clock::time_point::max()}) {
        now = time;
        EXPECT_LE(read(rtc, kSeconds), 0x59U);
        EXPECT_GE(read(rtc, kMonth), 1U);
        EXPECT_LE(read(rtc, kMonth), 0x12U);
        EXPECT_GE(read(rtc, kDay), 1U);
        EXPECT_LE(read(rtc, kDay), 0x31U);
    }
}

TEST_F(RtcTest, HostClockThatIsSetBackTakesTheGuestsAlong) {
    set(rtc, {0, 0, 0x12, 0x03, 0x11, 0x26, 0x20});
    now -= 24h;
    EXPECT_EQ(show(rtc), (Shown{0, 0, 0x12, 0x02, 0x11, 0x26, 0x20}));
}

TEST_F(RtcTest, StateSurvivesARestoreLater) {
    write(rtc, 0x40, 0x5a);
    set(rtc, {0x00, 0x00, 0x12, 0x01, 0x01, 0x30, 0x20});
    const Rtc::State state = rtc.state();
    now += 1min;
    Rtc restored(state, [this] { return now; });
    EXPECT_EQ(restored.state(), state);
    EXPECT_EQ(show(restored), (Shown{0x00, 0x01, 0x12, 0x01, 0x01, 0x30, 0x20}));
    EXPECT_EQ(read(restored, 0x40), 0x5aU);
}

TEST_F(RtcTest, ClockStoppedForSettingIsRestoredStopped) {
    write(rtc, kB, kSet | k24Hours);
    write(rtc, kYear, 0x44);
    Rtc restored(rtc.state(), [this] { return now; });
    now += 1h;
    EXPECT_EQ(read(restored, kHours), 0x13U);
    write(restored, kB, k24Hours);
    EXPECT_EQ(show(restored), (Shown{0x07, 0x45, 0x13, 0x03, 0x11, 0x44, 0x20}));
}

TEST_F(RtcTest, DamagedStateIsRefused) {
    EXPECT_THROW(Rtc{Rtc::State{.index = 0x80}}, Error);
    EXPECT_THROW(Rtc{Rtc::State{.offset = std::chrono::microseconds::max()}}, Error);
    EXPECT_THROW(Rtc{Rtc::State{.offset = std::chrono::microseconds::min()}}, Error);
}

TEST_F(RtcTest, RegistersThatNoGuestCanWriteAreRefusedInAState) {
    const auto refused = [this](unsigned index, std::uint8_t value) {
        Rtc::State state = rtc.state();
        state.memory[index] = value;
        EXPECT_THROW(Rtc{state}, Error) << index;
    };
    refused(kA, kUpdateInProgress | kNormalA);
    refused(kC, 0x80);
    refused(kD, 0x00);
}

TEST_F(RtcTest, SettingTheClockGoesOnWithARestoredClock) {
    // The writes of set(). The guest may be saved after each. Half of them write the index alone.
    struct Write {
        std::uint64_t offset;
        unsigned value;
    };
    std::vector<Write> writes;
    const auto add = [&writes](unsigned index, unsigned value) {
        writes.push_back({Rtc::kIndexOffset, index});
        writes.push_back({Rtc::kDataOffset, value});
    };
    constexpr Shown kNoonIn2030 = {0x00, 0x00, 0x12, 0x01, 0x01, 0x30, 0x20};
    add(kB, kSet | k24Hours);
    add(kA, kDividerReset);
    for (std::size_t i = 0; i < kNoonIn2030.size(); ++i) {
        add(kShown[i], kNoonIn2030[i]);
    }
    add(kB, k24Hours);
    add(kA, kNormalA);

    for (std::size_t saved = 0; saved <= writes.size(); ++saved) {
        Rtc original([this] { return now; });
        for (std::size_t i = 0; i < saved; ++i) {
            outb(original, writes[i].offset, writes[i].value);
        }
        now += 700ms;
        Rtc restored(original.state(), [this] { return now; });
        for (std::size_t i = saved; i < writes.size(); ++i) {
            outb(original, writes[i].offset, writes[i].value);
            outb(restored, writes[i].offset, writes[i].value);
            ASSERT_EQ(inb(restored, Rtc::kDataOffset), inb(original, Rtc::kDataOffset)) << saved << ", then " << i;
        }
        ASSERT_EQ(restored.state(), original.state()) << saved;
        now += 90s;
        ASSERT_EQ(show(restored), show(original)) << saved;
    }
}

TEST_F(RtcTest, HostileGuestLeavesItInAStateThatCanBeRestored) {
    HostileGuest guest(19);
    for (int step = 0; step < 300'000; ++step) {
        guest.access(rtc, Rtc::kSize);
        if (guest.below(4) == 0) { // Otherwise the interesting registers are selected too rarely.
            outb(rtc, Rtc::kIndexOffset, guest.below(2) == 0 ? static_cast<unsigned>(guest.below(14)) : kCentury);
        }
        now += std::chrono::microseconds{guest.below(1'000'000)};
        if (step % 16 == 0) {
            const Rtc::State state = rtc.state();
            const Rtc restored(state, [this] { return now; });
            ASSERT_EQ(restored.state(), state);
        }
    }
}

TEST_F(RtcTest, EveryRegisterContentIsADate) {
    HostileGuest guest(23);
    for (int step = 0; step < 20'000; ++step) {
        Shown garbage{};
        for (unsigned& value : garbage) {
            value = static_cast<unsigned>(guest.below(256));
        }
        write(rtc, kB, static_cast<unsigned>(guest.below(8)));
        set(rtc, garbage);
        write(rtc, kB, kBinary | k24Hours);
        const Shown shown = show(rtc);
        ASSERT_LE(shown[0], 59U);
        ASSERT_LE(shown[1], 59U);
        ASSERT_LE(shown[2], 23U);
        ASSERT_TRUE(shown[3] >= 1 && shown[3] <= 31);
        ASSERT_TRUE(shown[4] >= 1 && shown[4] <= 12);
        ASSERT_LE(shown[5], 99U);
        const Rtc restored(rtc.state(), [this] { return now; });
    }
}

TEST(RtcThreads, ManyVcpusMayUseItAtOnce) {
    Rtc rtc;
    {
        std::vector<std::jthread> vcpus;
        for (std::uint64_t seed = 0; seed < 3; ++seed) {
            vcpus.emplace_back([&rtc, seed] {
                HostileGuest guest(seed);
                for (int step = 0; step < 20'000; ++step) {
                    guest.access(rtc, Rtc::kSize);
                }
            });
        }
    }
    const Rtc restored(rtc.state());
    EXPECT_EQ(restored.state(), rtc.state());
}

} // namespace
} // namespace vmm::devices
