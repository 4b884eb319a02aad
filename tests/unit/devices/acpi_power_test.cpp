#include "devices/acpi_power.hpp"

#include <gtest/gtest.h>

#include <array>

#include "kvm/host/error.hpp"
#include "support/devices_guest_access.hpp"

namespace vmm::devices {
namespace {

using testing::HostileGuest;
using testing::inb;
using testing::outb;

constexpr unsigned kSleepEnable = 1U << 5U;
constexpr unsigned sleep_type(unsigned type) {
    return type << 2U;
}

class AcpiPowerTest : public ::testing::Test {
  protected:
    AcpiPower::Callbacks callbacks() {
        return {.power_off = [this] { ++power_offs; }, .reset = [this] { ++resets; }};
    }

    int power_offs = 0;
    int resets = 0;
    AcpiPower device{callbacks()};
};

TEST_F(AcpiPowerTest, EnteringS5PowersOff) {
    // Linux, acpi_hw_extended_sleep(): clear the wake status, then sleep type and enable in one write.
    outb(device, AcpiPower::kSleepStatusOffset, 0x80);
    EXPECT_EQ(power_offs, 0);
    outb(device, AcpiPower::kSleepControlOffset, sleep_type(AcpiPower::kS5SleepType) | kSleepEnable);
    EXPECT_EQ(power_offs, 1);
    EXPECT_EQ(resets, 0);
}

TEST_F(AcpiPowerTest, SleepTypeAloneDoesNothing) {
    outb(device, AcpiPower::kSleepControlOffset, sleep_type(AcpiPower::kS5SleepType));
    EXPECT_EQ(power_offs, 0);
    EXPECT_EQ(inb(device, AcpiPower::kSleepControlOffset), sleep_type(AcpiPower::kS5SleepType));
}

TEST_F(AcpiPowerTest, OtherSleepStatesAreIgnored) {
    for (unsigned type = 0; type < 8; ++type) {
        if (type != AcpiPower::kS5SleepType) {
            outb(device, AcpiPower::kSleepControlOffset, sleep_type(type) | kSleepEnable);
        }
    }
    EXPECT_EQ(power_offs, 0);
}

TEST_F(AcpiPowerTest, BitsAroundSleepTypeAndEnableDoNotMatter) {
    outb(device, AcpiPower::kSleepControlOffset, 0xc3U | sleep_type(AcpiPower::kS5SleepType) | kSleepEnable);
    EXPECT_EQ(power_offs, 1);
}

TEST_F(AcpiPowerTest, SleepEnableReadsAsZero) {
    outb(device, AcpiPower::kSleepControlOffset, sleep_type(3) | kSleepEnable);
    EXPECT_EQ(inb(device, AcpiPower::kSleepControlOffset), sleep_type(3));
}

TEST_F(AcpiPowerTest, OnlyTheResetValueResets) {
    for (unsigned value = 0; value <= 0xff; ++value) {
        outb(device, AcpiPower::kResetOffset, value);
    }
    EXPECT_EQ(resets, 1);
    EXPECT_EQ(power_offs, 0);
}

TEST_F(AcpiPowerTest, NothingEverWakes) {
    outb(device, AcpiPower::kSleepStatusOffset, 0xff);
    EXPECT_EQ(inb(device, AcpiPower::kSleepStatusOffset), 0U);
}

TEST_F(AcpiPowerTest, StateSurvivesARestore) {
    outb(device, AcpiPower::kSleepControlOffset, sleep_type(6));
    AcpiPower restored(callbacks(), device.state());
    EXPECT_EQ(inb(restored, AcpiPower::kSleepControlOffset), sleep_type(6));
    EXPECT_EQ(restored.state(), device.state());
}

TEST_F(AcpiPowerTest, GuestThatHasChosenASleepTypeGoesOnWithARestoredDevice) {
    outb(device, AcpiPower::kSleepControlOffset, sleep_type(AcpiPower::kS5SleepType));
    AcpiPower restored(callbacks(), device.state());
    outb(restored, AcpiPower::kSleepControlOffset, inb(restored, AcpiPower::kSleepControlOffset) | kSleepEnable);
    EXPECT_EQ(power_offs, 1);
    EXPECT_EQ(resets, 0);
}

TEST_F(AcpiPowerTest, DamagedStateIsRefused) {
    EXPECT_THROW(AcpiPower(callbacks(), AcpiPower::State{.sleep_type = 8}), Error);
}

TEST_F(AcpiPowerTest, HostileGuestLeavesItInAStateThatCanBeRestored) {
    HostileGuest guest(13);
    for (int step = 0; step < 100'000; ++step) {
        guest.access(device, AcpiPower::kSize);
        ASSERT_LE(device.state().sleep_type, 7U);
    }
    const AcpiPower restored(callbacks(), device.state());
    EXPECT_EQ(restored.state(), device.state());
}

} // namespace
} // namespace vmm::devices
