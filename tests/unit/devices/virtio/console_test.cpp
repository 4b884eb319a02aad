// virtio-console (virtio 1.2, 5.3).

#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "devices/virtio/console.hpp"
#include "support/devices_hostile_driver.hpp"
#include "support/devices_virtio_driver.hpp"

namespace vmm::devices::testing {
namespace {

using virtio::Console;
using virtio::ConsoleSize;

constexpr std::uint16_t kReceive = 0;
constexpr std::uint16_t kTransmit = 1;
constexpr std::uint32_t kConfigChange = 2; // InterruptStatus, bit 1

std::span<const std::byte> bytes_of(std::string_view text) {
    return std::as_bytes(std::span(text));
}

std::string take_all(Console& console) {
    std::string text(100, '\0');
    text.resize(console.take_output(std::as_writable_bytes(std::span(text))));
    return text;
}

GuestAddress store(VirtioRig& rig, std::string_view text) {
    const GuestAddress at = rig.allocate(text.size());
    for (std::size_t i = 0; i < text.size(); ++i) {
        EXPECT_TRUE(rig.memory().store(at + i, text[i]));
    }
    return at;
}

TEST(VirtioConsole, PrintsWhatTheGuestSays) { // 5.3.6
    std::atomic<int> announced = 0;
    Console console("con0", {[&announced] { ++announced; }, {}}, std::nullopt);
    VirtioRig rig(console);
    ASSERT_TRUE(rig.start());
    rig.queue(kTransmit).add({{store(rig, "hel"), 3}, {store(rig, "lo"), 2}});
    rig.ring(kTransmit);
    const auto used = rig.wait_for_used(kTransmit);
    ASSERT_TRUE(used);
    EXPECT_EQ(used->length, 0U);
    EXPECT_EQ(announced, 1);
    EXPECT_EQ(take_all(console), "hello");
    EXPECT_EQ(take_all(console), "");
    rig.queue(kTransmit).add({{store(rig, "!"), 1}});
    rig.ring(kTransmit);
    ASSERT_TRUE(rig.wait_for_used(kTransmit));
    EXPECT_EQ(announced, 2);
}

TEST(VirtioConsole, DropsWhatNobodyTakesAndCountsIt) {
    Console console("con0", {}, std::nullopt, 4);
    VirtioRig rig(console);
    ASSERT_TRUE(rig.start());
    rig.queue(kTransmit).add({{store(rig, "abcdef"), 6}});
    rig.ring(kTransmit);
    ASSERT_TRUE(rig.wait_for_used(kTransmit));
    EXPECT_EQ(take_all(console), "abcd");
    EXPECT_EQ(console.dropped_output_bytes(), 2U);
}

TEST(VirtioConsole, GivesTheGuestWhatWasTypedBeforeItListened) {
    Console console("con0", {}, std::nullopt);
    EXPECT_EQ(console.feed_input(bytes_of("ls\n")), 3U);
    VirtioRig rig(console);
    ASSERT_TRUE(rig.start());
    const GuestAddress at = rig.allocate(16);
    rig.queue(kReceive).add({{at, 16, kWritable}});
    rig.ring(kReceive);
    const auto used = rig.wait_for_used(kReceive);
    ASSERT_TRUE(used);
    EXPECT_EQ(used->length, 3U);
    EXPECT_EQ(*rig.memory().load<char>(at), 'l');
}

TEST(VirtioConsole, SaysWhenThereIsRoomForInputAgain) {
    std::atomic<int> room = 0;
    Console console("con0", {{}, [&room] { ++room; }}, std::nullopt);
    const std::string much(Console::kInputBytes + 1, 'x');
    EXPECT_EQ(console.feed_input(bytes_of(much)), Console::kInputBytes);
    VirtioRig rig(console);
    ASSERT_TRUE(rig.start());
    EXPECT_EQ(room, 0);
    rig.queue(kReceive).add({{rig.allocate(16), 16, kWritable}});
    rig.ring(kReceive);
    ASSERT_TRUE(rig.wait_for_used(kReceive));
    rig.settle();
    EXPECT_EQ(room, 1);
    EXPECT_EQ(console.feed_input(bytes_of(much)), 16U);
}

TEST(VirtioConsole, TellsOfAnotherSize) { // 5.3.5
    Console console("con0", {}, ConsoleSize{80, 25});
    VirtioRig rig(console);
    ASSERT_TRUE(rig.start());
    EXPECT_EQ(rig.driver().device_features() & 1, 1U);
    console.resize({132, 50});
    const auto source = console.sources().back();
    console.ready(source.fd, source.events);
    EXPECT_EQ(rig.driver().take_interrupts() & kConfigChange, kConfigChange);
}

// 5.3.5.1 and 5.3.6.2.1 demand more for other features: EMERG_WRITE, MULTIPORT.
TEST(VirtioConsole, OffersNothingButItsSize) {
    const Console console("con0", {}, ConsoleSize{80, 25});
    EXPECT_EQ(console.identity().features, 1U);
}

TEST(VirtioConsole, OffersNoSizeItDoesNotKnow) {
    Console console("con0", {}, std::nullopt);
    console.resize({132, 50});
    EXPECT_EQ(console.identity().features, 0U);
}

std::unique_ptr<Console> make_console() {
    auto console = std::make_unique<Console>("con0", CharacterPort::Callbacks{}, ConsoleSize{80, 25});
    EXPECT_EQ(console->feed_input(bytes_of(std::string(1000, 'x'))), 1000U);
    return console;
}

class ConsoleTransmitHostile : public ::testing::TestWithParam<HostileCase> {};

TEST_P(ConsoleTransmitHostile, DriverIsAnsweredAndNothingElseIsTouched) {
    run_hostile_case(GetParam(), {.make = make_console,
                                  .queue = kTransmit,
                                  .looks_at_once = true,
                                  .request =
                                      [](VirtioRig& rig) {
                                          rig.queue(kTransmit).add({{rig.allocate(64), 64}});
                                      },
                                  .works =
                                      [](VirtioRig& rig) {
                                          rig.queue(kTransmit).add({{rig.allocate(64), 64}});
                                          rig.ring(kTransmit);
                                          return rig.wait_for_used(kTransmit).has_value();
                                      }});
}

INSTANTIATE_TEST_SUITE_P(Every, ConsoleTransmitHostile, ::testing::ValuesIn(hostile_cases()), hostile_case_name);

class ConsoleReceiveHostile : public ::testing::TestWithParam<HostileCase> {};

TEST_P(ConsoleReceiveHostile, DriverIsAnsweredAndNothingElseIsTouched) {
    Console* console = nullptr;
    const auto make = [&console] {
        auto made = make_console();
        console = made.get();
        return made;
    };
    const auto works = [&console](VirtioRig& rig) {
        rig.queue(kReceive).add({{rig.allocate(8), 8, kWritable}});
        rig.ring(kReceive);
        static_cast<void>(console->feed_input(bytes_of("again")));
        console->ready(-1, 0);
        return rig.wait_for_used(kReceive).has_value();
    };
    run_hostile_case(GetParam(), {.make = make,
                                  .queue = kReceive,
                                  .looks_at_once = false,
                                  .request =
                                      [](VirtioRig& rig) {
                                          rig.queue(kReceive).add({{rig.allocate(64), 64, kWritable}});
                                      },
                                  .works = works});
}

INSTANTIATE_TEST_SUITE_P(Every, ConsoleReceiveHostile, ::testing::ValuesIn(hostile_cases()), hostile_case_name);

} // namespace
} // namespace vmm::devices::testing
