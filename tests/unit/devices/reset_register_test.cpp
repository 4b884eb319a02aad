// The ports by which a PC can reset itself: 0x92 and 0xcf9. What broke: guests that used them stood in HLT for ever.

#include "devices/reset_register.hpp"

#include <gtest/gtest.h>

#include <array>

#include "kvm/host/error.hpp"
#include "support/devices_guest_access.hpp"

namespace vmm::devices {
namespace {

using testing::HostileGuest;
using testing::inb;
using testing::outb;

class SystemControlTest : public ::testing::Test {
  protected:
    int resets = 0;
    ResetRegister device{system_control::kLayout, [this] { ++resets; }};
};

TEST_F(SystemControlTest, FastResetResetsOnce) {
    outb(device, 0, inb(device, 0) | system_control::kFastReset); // as SeaBIOS and Linux's boot code write it
    EXPECT_EQ(resets, 1);
    outb(device, 0, system_control::kFastReset);
    EXPECT_EQ(resets, 1) << "the bit was set before";
    outb(device, 0, 0);
    outb(device, 0, system_control::kFastReset);
    EXPECT_EQ(resets, 2);
}

TEST_F(SystemControlTest, A20IsOpenAtFirstAndReadsAsItWasWritten) {
    EXPECT_EQ(inb(device, 0), system_control::kA20);
    outb(device, 0, 0);
    EXPECT_EQ(inb(device, 0), 0);
    outb(device, 0, system_control::kA20);
    EXPECT_EQ(inb(device, 0), system_control::kA20);
    EXPECT_EQ(resets, 0);
}

TEST_F(SystemControlTest, OtherBitsAreZeroAndDoNotReset) {
    outb(device, 0, 0xfe);
    EXPECT_EQ(inb(device, 0), system_control::kA20);
    EXPECT_EQ(resets, 0);
}

TEST_F(SystemControlTest, StateSurvivesARestore) {
    outb(device, 0, 0);
    ResetRegister restored{system_control::kLayout, [] {}, device.state()};
    EXPECT_EQ(restored.state(), device.state());
    EXPECT_EQ(inb(restored, 0), 0);
    EXPECT_THROW(ResetRegister(system_control::kLayout, [] {}, {.value = 0x10}), Error);
}

TEST_F(SystemControlTest, RestoredAfterAResetItWaitsForTheBitToFall) {
    outb(device, 0, system_control::kFastReset);
    int resets_of_restored = 0;
    ResetRegister restored{system_control::kLayout, [&] { ++resets_of_restored; }, device.state()};
    outb(restored, 0, system_control::kFastReset);
    EXPECT_EQ(resets_of_restored, 0);
    outb(restored, 0, 0);
    outb(restored, 0, system_control::kFastReset);
    EXPECT_EQ(resets_of_restored, 1);
}

TEST_F(SystemControlTest, HostileGuestCanOnlyReset) {
    HostileGuest guest(92);
    for (int step = 0; step < 100'000; ++step) {
        guest.access(device, system_control::kLayout.size);
    }
    EXPECT_EQ(inb(device, 0) & ~(system_control::kA20 | system_control::kFastReset), 0);
}

class ResetControlTest : public ::testing::Test {
  protected:
    void write(unsigned value) { outb(device, reset_control::kLayout.offset, value); }
    unsigned read() { return inb(device, reset_control::kLayout.offset); }

    int resets = 0;
    ResetRegister device{reset_control::kLayout, [this] { ++resets; }};
};

// Linux, native_machine_emergency_restart(): BOOT_CF9_FORCE.
TEST_F(ResetControlTest, HardResetInTwoSteps) {
    const unsigned before = read() & ~0xfU;
    write(before | 0x02);
    EXPECT_EQ(resets, 0) << "that says only of what kind it will be";
    EXPECT_EQ(read(), 0x02U);
    write(before | 0x06);
    EXPECT_EQ(resets, 1);
}

TEST_F(ResetControlTest, EachKindOfResetInOneStep) {
    for (const unsigned kind : {0x04U, 0x06U, 0x0cU, 0x0eU}) {
        write(0);
        resets = 0;
        write(kind);
        EXPECT_EQ(resets, 1) << kind;
        write(kind);
        EXPECT_EQ(resets, 1) << kind << ": not without going back to 0 first";
    }
}

TEST_F(ResetControlTest, OtherBitsAreZeroAndDoNotReset) {
    write(0xfb);
    EXPECT_EQ(resets, 0);
    EXPECT_EQ(read(), 0x0aU);
}

// A write of PCI's address register can have any bits at the place of the reset control register.
TEST_F(ResetControlTest, WideAccessesArePcis) {
    std::array<std::byte, 4> address{std::byte{0}, std::byte{0x0e}, std::byte{0}, std::byte{0x80}};
    device.write(0, address);
    device.write(1, std::span(address).first(2));
    device.write(0, std::span(address).first(2));
    EXPECT_EQ(resets, 0);
    EXPECT_EQ(read(), 0U);
    device.read(0, address);
    for (const std::byte byte : address) {
        EXPECT_EQ(byte, std::byte{0xff}) << "a guest that looks for PCI finds none";
    }
}

TEST_F(ResetControlTest, PortsAroundItAreNotItsOwn) {
    for (const std::uint64_t offset : {0U, 2U, 3U}) {
        outb(device, offset, 0x06);
        EXPECT_EQ(inb(device, offset), 0xff) << offset;
    }
    EXPECT_EQ(resets, 0);
}

TEST_F(ResetControlTest, StateSurvivesARestore) {
    write(0x0a);
    ResetRegister restored{reset_control::kLayout, [] {}, device.state()};
    EXPECT_EQ(restored.state(), device.state());
    EXPECT_EQ(inb(restored, reset_control::kLayout.offset), 0x0a);
    EXPECT_THROW(ResetRegister(reset_control::kLayout, [] {}, {.value = 0x01}), Error);
}

TEST_F(ResetControlTest, HardResetInTwoStepsGoesOnWithARestoredRegister) {
    write(0x02);
    int resets_of_restored = 0;
    ResetRegister restored{reset_control::kLayout, [&] { ++resets_of_restored; }, device.state()};
    outb(restored, reset_control::kLayout.offset, 0x06);
    EXPECT_EQ(resets_of_restored, 1);
    EXPECT_EQ(resets, 0);
}

TEST_F(ResetControlTest, HostileGuestCanOnlyReset) {
    HostileGuest guest(0xcf9);
    for (int step = 0; step < 100'000; ++step) {
        guest.access(device, reset_control::kLayout.size);
    }
    EXPECT_EQ(read() & ~0x0eU, 0U);
}

} // namespace
} // namespace vmm::devices
