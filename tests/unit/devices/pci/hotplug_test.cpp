#include "devices/pci/hotplug.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <thread>
#include <vector>

#include "support/devices_guest_access.hpp"
#include "support/devices_recording_irq.hpp"

namespace vmm::devices::pci {
namespace {

using testing::HostileGuest;
using testing::RecordingIrq;

constexpr std::uint64_t kCome = 0;
constexpr std::uint64_t kGone = 4;
constexpr std::uint64_t kLetGo = 8;

class HotplugTest : public ::testing::Test {
  protected:
    std::uint32_t read(std::uint64_t offset) {
        std::uint32_t value = 0;
        hotplug.read(offset, std::as_writable_bytes(std::span(&value, 1)));
        return value;
    }
    void write(std::uint64_t offset, std::uint32_t value) {
        hotplug.write(offset, std::as_bytes(std::span(&value, 1)));
    }

    RecordingIrq irq;
    std::vector<unsigned> let_go;
    Hotplug hotplug{irq, [this](unsigned slot) { let_go.push_back(slot); }, {}};
};

TEST_F(HotplugTest, AtFirstNothingHasHappened) {
    EXPECT_EQ(read(kCome), 0U);
    EXPECT_EQ(read(kGone), 0U);
    EXPECT_EQ(read(kLetGo), 0U);
    EXPECT_EQ(irq.pulses(), 0U);
    hotplug.repeat_interrupt();
    EXPECT_EQ(irq.pulses(), 0U);
}

TEST_F(HotplugTest, ADeviceThatHasComeShowsOnce) {
    hotplug.announce(3);
    EXPECT_EQ(irq.take(), 1U);
    hotplug.announce(31);
    EXPECT_EQ(irq.take(), 1U);
    EXPECT_EQ(read(kGone), 0U);
    EXPECT_EQ(read(kCome), 1U << 3U | 1U << 31U);
    EXPECT_EQ(read(kCome), 0U);
}

TEST_F(HotplugTest, ADeviceThatIsWantedBackShowsOnce) {
    hotplug.ask_back(5);
    EXPECT_EQ(irq.take(), 1U);
    EXPECT_EQ(read(kCome), 0U);
    EXPECT_EQ(read(kGone), 1U << 5U);
    EXPECT_EQ(read(kGone), 0U);
    EXPECT_TRUE(let_go.empty());
}

TEST_F(HotplugTest, TheGuestLetsGoOfEachSlotThatItNames) {
    write(kLetGo, 1U << 2U | 1U << 31U | 1U);
    EXPECT_EQ(let_go, (std::vector<unsigned>{0, 2, 31}));
    write(kLetGo, 0);
    EXPECT_EQ(let_go.size(), 3U);
}

TEST_F(HotplugTest, WhatIsForReadingIsNotWritten) {
    hotplug.announce(1);
    hotplug.ask_back(2);
    write(kCome, 0);
    write(kGone, UINT32_MAX);
    EXPECT_TRUE(let_go.empty());
    EXPECT_EQ(read(kCome), 2U);
    EXPECT_EQ(read(kGone), 4U);
}

TEST_F(HotplugTest, IsForAlignedAccessesOf4BytesOnly) {
    hotplug.announce(1);
    hotplug.ask_back(2);
    for (std::uint64_t offset = 0; offset < 20; ++offset) {
        for (std::size_t length = 0; length <= 9; ++length) {
            if (length == 4 && offset % 4 == 0 && offset < Hotplug::kSize) {
                continue;
            }
            std::vector<std::byte> data(length, std::byte{0x5a});
            hotplug.read(offset, data);
            EXPECT_EQ(data, std::vector(length, std::byte{0xff})) << offset << " " << length;
            hotplug.write(offset, std::vector(length, std::byte{0xff}));
        }
    }
    EXPECT_TRUE(let_go.empty());
    EXPECT_EQ(hotplug.state(), (Hotplug::State{2, 4})) << "none of those reads has cleared anything";
}

TEST_F(HotplugTest, GoesOnFromItsState) {
    hotplug.announce(7);
    hotplug.ask_back(8);
    Hotplug restored{irq, {}, hotplug.state()};
    EXPECT_EQ(restored.state(), hotplug.state());
    (void)irq.take();
    restored.repeat_interrupt();
    EXPECT_EQ(irq.take(), 1U);
    EXPECT_EQ(read(kCome), 1U << 7U);
    hotplug.repeat_interrupt();
    EXPECT_EQ(irq.take(), 1U) << "the other register has not been read";
    EXPECT_EQ(read(kGone), 1U << 8U);
    hotplug.repeat_interrupt();
    EXPECT_EQ(irq.take(), 0U);
}

TEST_F(HotplugTest, EachAnnouncementIsSeenOnceByTwoReaders) {
    constexpr std::uint64_t kAnnouncements = 1000;
    std::uint64_t seen[2] = {};
    std::atomic<bool> is_over = false;
    std::vector<std::thread> readers;
    for (std::uint64_t& mine : seen) {
        readers.emplace_back([this, &mine, &is_over] {
            while (!is_over.load()) {
                mine += read(kCome) != 0 ? 1 : 0;
                std::this_thread::yield();
            }
        });
    }
    std::uint64_t announced = 0;
    for (; announced < kAnnouncements; ++announced) {
        hotplug.announce(4);
        while (hotplug.state().come != 0) {
            std::this_thread::yield();
        }
    }
    is_over = true;
    for (std::thread& reader : readers) {
        reader.join();
    }
    EXPECT_EQ(seen[0] + seen[1], announced);
}

TEST_F(HotplugTest, SurvivesAccessesOfAnyKind) {
    HostileGuest guest{11};
    for (int i = 0; i < 20'000; ++i) {
        guest.access(hotplug, Hotplug::kSize);
    }
    for (const unsigned slot : let_go) {
        EXPECT_LT(slot, 32U);
    }
}

} // namespace
} // namespace vmm::devices::pci
