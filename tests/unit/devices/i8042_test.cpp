#include "devices/i8042.hpp"

#include <gtest/gtest.h>

#include <array>

#include "support/devices_guest_access.hpp"

namespace vmm::devices {
namespace {

using testing::HostileGuest;
using testing::inb;
using testing::outb;

constexpr unsigned kOutputBufferFull = 0x01;
constexpr unsigned kInputBufferFull = 0x02;

class I8042Test : public ::testing::Test {
  protected:
    int resets = 0;
    I8042 device{[this] { ++resets; }};
};

TEST_F(I8042Test, CommandFeResets) {
    outb(device, I8042::kCommandOffset, 0xfe);
    EXPECT_EQ(resets, 1);
}

TEST_F(I8042Test, OtherCommandsAndDataDoNotReset) {
    for (unsigned command = 0; command <= 0xff; ++command) {
        outb(device, I8042::kDataOffset, command);
        if (command != 0xfe) {
            outb(device, I8042::kCommandOffset, command);
        }
    }
    EXPECT_EQ(resets, 0);
}

TEST_F(I8042Test, RebootingGuestNeedNotWaitForTheInputBuffer) {
    EXPECT_EQ(inb(device, I8042::kCommandOffset) & kInputBufferFull, 0U);
}

TEST_F(I8042Test, ProbingDriverThatDrainsTheOutputBufferFindsNoController) {
    // Linux, i8042_flush(): if the buffer has more than 16 bytes, Linux assumes that there is no controller.
    int drained = 0;
    while ((inb(device, I8042::kCommandOffset) & kOutputBufferFull) != 0 && drained < 17) {
        inb(device, I8042::kDataOffset);
        ++drained;
    }
    EXPECT_EQ(drained, 17);
}

TEST_F(I8042Test, PortsBetweenDataAndCommandAreNotItsOwn) {
    std::array<std::byte, 5> all{};
    device.read(0, all);
    const std::array expected{std::byte{0xff}, std::byte{0xff}, std::byte{0xff}, std::byte{0xff}, std::byte{0x01}};
    EXPECT_EQ(all, expected);
}

TEST_F(I8042Test, WideWriteReachesTheCommandPortByteByByte) {
    const std::array data{std::byte{0}, std::byte{0xfe}};
    device.write(I8042::kCommandOffset - 1, data);
    EXPECT_EQ(resets, 1);
    device.write(I8042::kCommandOffset, data);
    EXPECT_EQ(resets, 1);
}

TEST_F(I8042Test, HostileGuestCanOnlyReset) {
    HostileGuest guest(11);
    for (int step = 0; step < 100'000; ++step) {
        guest.access(device, I8042::kSize);
    }
    EXPECT_EQ(inb(device, I8042::kCommandOffset), kOutputBufferFull);
    EXPECT_EQ(I8042::state(), I8042::State{});
}

TEST_F(I8042Test, RebootingGuestGoesOnWithARestoredController) {
    inb(device, I8042::kCommandOffset); // The driver has seen the input buffer empty, and sends the command next.
    int resets_of_restored = 0;
    I8042 restored{[&resets_of_restored] { ++resets_of_restored; }, I8042::state()};
    EXPECT_EQ(inb(restored, I8042::kCommandOffset), inb(device, I8042::kCommandOffset));
    outb(restored, I8042::kCommandOffset, 0xfe);
    EXPECT_EQ(resets_of_restored, 1);
    EXPECT_EQ(resets, 0);
}

} // namespace
} // namespace vmm::devices
