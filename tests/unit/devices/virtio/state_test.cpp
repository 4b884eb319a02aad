// Devices and transports that are made from the state of others during traffic.

#include <gtest/gtest.h>

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "devices/disk_image.hpp"
#include "devices/virtio/balloon.hpp"
#include "devices/virtio/block.hpp"
#include "devices/virtio/console.hpp"
#include "devices/virtio/net.hpp"
#include "devices/virtio/rng.hpp"
#include "devices/virtio/vsock.hpp"
#include "kvm/host/error.hpp"
#include "support/devices_echo_device.hpp"
#include "support/devices_held_disk_io.hpp"
#include "support/devices_virtio_driver.hpp"
#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"

namespace vmm::devices::testing {
namespace {

using namespace virtio;
using vmm::testing::error_of;
using vmm::testing::mentions;
using vmm::testing::TemporaryDirectory;

bool mentions_all(std::string_view text, std::initializer_list<std::string_view> parts) {
    return std::ranges::all_of(parts, [text](std::string_view part) { return mentions(text, part); });
}

/// The ids of the requests that queue `index` has got back since the last call.
std::vector<std::uint32_t> take_all_used(VirtioRig& rig, std::uint16_t index) {
    rig.settle();
    std::vector<std::uint32_t> ids;
    while (const auto used = rig.queue(index).take_used()) {
        ids.push_back(used->id);
    }
    return ids;
}

// ---- The transport

/// A running device, with which the driver has negotiated.
class StateOfMmioTransport : public ::testing::Test {
  protected:
    void SetUp() override {
        ASSERT_TRUE(rig.start());
        rig.driver().write(reg::kQueueSel, 1);
        rig.driver().write(reg::kDeviceFeaturesSel, 1);
        state = MmioTransport::State{rig.transport().state(queues())};
    }
    [[nodiscard]] std::vector<std::optional<Queue::State>> queues() {
        std::vector<std::optional<Queue::State>> states;
        for (std::uint16_t index = 0; index < 2; ++index) {
            states.push_back(Queue::State{rig.queue(index).geometry(), true, true, 5, 3, 3, true});
        }
        return states;
    }
    [[nodiscard]] std::string error_of_restoring() {
        return error_of([&] { MmioTransport(device.identity(), rig.memory(), irq, {}, state); });
    }

    EchoDevice device;
    VirtioRig rig{device};
    RecordingIrq irq;
    MmioTransport::State state;
};

TEST_F(StateOfMmioTransport, IsWhatTheNewOneSaysAndShows) {
    MmioTransport restored(device.identity(), rig.memory(), irq, {}, state);
    auto again = restored.state({});
    for (auto& queue : again.negotiation.queues) { // The position of the last interrupt is not trusted.
        queue.in_device->signalled_used = 3;
        queue.in_device->signalled_valid = true;
    }
    EXPECT_EQ(again, state);
    RegisterDriver driver(restored);
    for (const std::uint64_t offset : {reg::kStatus, reg::kQueueReady, reg::kQueueSizeMax, reg::kDeviceFeatures,
                                       reg::kConfigGeneration, reg::kInterruptStatus}) {
        EXPECT_EQ(driver.read(offset), rig.driver().read(offset)) << offset;
    }
}

TEST_F(StateOfMmioTransport, ActivatesTheDeviceWithItsQueuesWhereTheyWere) {
    MmioTransport restored(device.identity(), rig.memory(), irq, {}, state);
    const Negotiation::Work work = restored.negotiation().take_work();
    ASSERT_TRUE(work.activation);
    EXPECT_FALSE(work.reset);
    EXPECT_EQ(work.activation->features, state.negotiation.driver_features);
    EXPECT_EQ(work.activation->queues[0]->state().next_available, 5U);
    EXPECT_EQ(work.activation->queues[0]->state().next_used, 3U);
    EXPECT_FALSE(restored.negotiation().take_work().activation);
}

TEST_F(StateOfMmioTransport, AfterAResetOfTheNewOneTheQueuesBeginAnew) {
    MmioTransport restored(device.identity(), rig.memory(), irq, {}, state);
    RegisterDriver driver(restored);
    driver.write(reg::kStatus, 0);
    EXPECT_FALSE(restored.negotiation().take_work().activation);
    EXPECT_EQ(driver.status(), 0U);
    ASSERT_TRUE(driver.negotiate(kFeatureVersion1));
    ASSERT_TRUE(driver.enable_queue(0, rig.queue(0).geometry()));
    driver.add_status(kStatusDriverOk);
    EXPECT_EQ(restored.negotiation().take_work().activation->queues[0]->state().next_available, 0U);
}

TEST_F(StateOfMmioTransport, AResetThatIsUnderWayIsFinishedInIt) {
    rig.driver().write(reg::kStatus, 0);
    const auto resetting = rig.transport().state(queues());
    EXPECT_EQ(resetting.negotiation.status, 0U);
    EXPECT_EQ(resetting.queue_select, 0U);
    EXPECT_FALSE(resetting.negotiation.queues[0].is_enabled);
}

TEST_F(StateOfMmioTransport, AQueueThatIsBeingStoppedIsStoppedInIt) {
    rig.driver().write(reg::kQueueReady, 0);
    const auto stopping = rig.transport().state(queues());
    EXPECT_FALSE(stopping.negotiation.queues[1].is_enabled);
    EXPECT_FALSE(stopping.negotiation.queues[1].in_device);
    EXPECT_EQ(stopping.negotiation.queues[1].geometry, rig.queue(1).geometry());
    EXPECT_TRUE(stopping.negotiation.queues[0].in_device);
}

TEST_F(StateOfMmioTransport, ADeviceThatNeedsAResetIsNotActivated) {
    rig.transport().fail("a rule");
    const auto broken = rig.transport().state(queues());
    MmioTransport restored(device.identity(), rig.memory(), irq, {}, broken);
    EXPECT_FALSE(restored.negotiation().take_work().activation);
    EXPECT_EQ(restored.negotiation().failure(), "a rule");
    RegisterDriver(restored).write(reg::kStatus, 0);
    (void)restored.negotiation().take_work();
    EXPECT_EQ(RegisterDriver(restored).status(), 0U);
}

TEST_F(StateOfMmioTransport, AnInterruptThatWasNotAcknowledgedIsRepeated) {
    MmioTransport quiet(device.identity(), rig.memory(), irq, {}, state);
    quiet.repeat_interrupt();
    EXPECT_EQ(irq.take(), 0U);
    rig.transport().notify(QueueSet::of(0));
    MmioTransport restored(device.identity(), rig.memory(), irq, {}, rig.transport().state(queues()));
    restored.repeat_interrupt();
    EXPECT_EQ(irq.take(), 1U);
    EXPECT_EQ(RegisterDriver(restored).take_interrupts(), 1U);
}

TEST_F(StateOfMmioTransport, WhatNoDriverCanReachIsRefused) {
    const MmioTransport::State good = state;
    EXPECT_EQ(error_of_restoring(), "");
    state.negotiation.status = kStatusDriverOk;
    EXPECT_TRUE(mentions_all(error_of_restoring(), {"echo0", "status"}));
    state = good;
    state.negotiation.status |= 16;
    EXPECT_TRUE(mentions(error_of_restoring(), "status"));
    state = good;
    state.negotiation.driver_features |= std::uint64_t{1} << 50;
    EXPECT_TRUE(mentions(error_of_restoring(), "features"));
    state = good;
    state.negotiation.config.pop_back();
    EXPECT_TRUE(mentions(error_of_restoring(), "configuration space"));
    state = good;
    state.negotiation.queues.pop_back();
    EXPECT_TRUE(mentions(error_of_restoring(), "number of queues"));
    state = good;
    state.negotiation.queues[0].geometry.descriptors = GuestAddress{1ULL << 40};
    EXPECT_TRUE(mentions(error_of_restoring(), "where none can be"));
    state = good;
    state.negotiation.queues[0].geometry.size = 3;
    EXPECT_TRUE(mentions(error_of_restoring(), "where none can be"));
    state = good;
    state.negotiation.queues[0].in_device->geometry.device_area = GuestAddress{64};
    EXPECT_TRUE(mentions(error_of_restoring(), "not the one"));
    state = good;
    state.negotiation.queues[0].is_enabled = false;
    EXPECT_TRUE(mentions(error_of_restoring(), "not the one"));
}

// ---- Entropy

TEST(StateOfRng, ANewOneGoesOnWhereTheOldOneStopped) {
    const auto fill_with = [](int value) {
        return [value](std::span<std::byte> bytes) {
            std::ranges::fill(bytes, static_cast<std::byte>(value));
            return true;
        };
    };
    Rng first("rng0", fill_with(1));
    VirtioRig rig(first);
    ASSERT_TRUE(rig.start());
    const GuestAddress buffers = rig.allocate(48);
    const auto before = rig.queue(0).add({{buffers, 16, kWritable}});
    rig.ring(0);
    EXPECT_EQ(take_all_used(rig, 0), (std::vector<std::uint32_t>{before}));
    rig.irq().take();
    rig.driver().take_interrupts();
    const auto between = rig.queue(0).add({{buffers + 16, 16, kWritable}}); // its doorbell is lost
    auto* const second = rig.replace_device([&](const DeviceState& state) {
        EXPECT_TRUE(std::holds_alternative<RngState>(state));
        return std::make_unique<Rng>("rng0", fill_with(2));
    });
    ASSERT_TRUE(second);
    EXPECT_EQ(take_all_used(rig, 0), (std::vector<std::uint32_t>{between}));
    EXPECT_GE(rig.irq().take(), 1U);
    const auto after = rig.queue(0).add({{buffers + 32, 16, kWritable}});
    rig.ring(0);
    EXPECT_EQ(take_all_used(rig, 0), (std::vector<std::uint32_t>{after}));
    EXPECT_EQ(rig.memory().load<std::uint8_t>(buffers), 1);
    EXPECT_EQ(rig.memory().load<std::uint8_t>(buffers + 16), 2);
    EXPECT_EQ(rig.memory().load<std::uint8_t>(buffers + 32), 2);
}

TEST(StateOfRng, TheInterruptOfWhatIsDoneIsSentAgain) {
    Rng first("rng0");
    VirtioRig rig(first);
    ASSERT_TRUE(rig.start());
    rig.queue(0).add({{rig.allocate(16), 16, kWritable}});
    rig.ring(0);
    EXPECT_EQ(take_all_used(rig, 0).size(), 1U);
    rig.driver().take_interrupts();
    rig.irq().take();
    auto* const second = rig.replace_device([](const DeviceState&) { return std::make_unique<Rng>("rng0"); });
    ASSERT_TRUE(second);
    rig.settle();
    EXPECT_EQ(rig.irq().take(), 1U);
}

TEST(StateOfRng, APausedDeviceTakesNothingUntilItResumes) {
    Rng rng("rng0");
    VirtioRig rig(rng);
    ASSERT_TRUE(rig.start());
    ASSERT_TRUE(rig.pump().pause());
    rig.queue(0).add({{rig.allocate(16), 16, kWritable}});
    rig.ring(0);
    EXPECT_TRUE(take_all_used(rig, 0).empty());
    rng.resume();
    EXPECT_EQ(take_all_used(rig, 0).size(), 1U);
}

// ---- Console

TEST(StateOfConsole, CharactersOfBothSidesAreNeitherLostNorDoubled) {
    int announced = 0;
    const CharacterPort::Callbacks callbacks{[&] { ++announced; }, {}};
    Console first("con0", callbacks, ConsoleSize{80, 25});
    VirtioRig rig(first);
    ASSERT_TRUE(rig.start());
    const auto print = [&](std::string_view text) {
        const GuestAddress at = rig.allocate(text.size());
        EXPECT_TRUE(rig.memory().copy_in(at, std::as_bytes(std::span(text))));
        const auto head = rig.queue(1).add({{at, static_cast<std::uint32_t>(text.size())}});
        rig.ring(1);
        return head;
    };
    const auto heads = std::vector<std::uint32_t>{print("one ")};
    EXPECT_EQ(take_all_used(rig, 1), heads);
    EXPECT_EQ(first.feed_input(std::as_bytes(std::span(std::string_view("typed")))), 5U);
    rig.settle(); // the guest has no buffer for it
    const auto between = print("two ");
    ConsoleState saved;
    announced = 0;
    auto* const second = rig.replace_device([&](const DeviceState& state) {
        saved = std::get<ConsoleState>(state);
        return std::make_unique<Console>("con0", callbacks, ConsoleSize{100, 30}, 4096, saved);
    });
    ASSERT_TRUE(second);
    EXPECT_EQ(saved.told_size, (ConsoleSize{80, 25}));
    EXPECT_EQ(take_all_used(rig, 1), (std::vector<std::uint32_t>{between}));
    EXPECT_EQ(announced, 1);
    print("three");
    EXPECT_EQ(take_all_used(rig, 1).size(), 1U);
    std::array<char, 64> out{};
    const std::size_t count = second->take_output(std::as_writable_bytes(std::span(out)));
    EXPECT_EQ(std::string_view(out.data(), count), "one two three");
    const GuestAddress at = rig.allocate(16);
    rig.queue(0).add({{at, 16, kWritable}});
    rig.ring(0);
    const auto used = rig.wait_for_used(0);
    ASSERT_TRUE(used);
    EXPECT_EQ(used->length, 5U);
    EXPECT_EQ(rig.memory().load<char>(at), 't');
    EXPECT_EQ(rig.driver().read_config<std::uint16_t>(0), 100U) << "the terminal is another one now";
}

TEST(StateOfConsole, MoreCharactersThanThereIsRoomForAreRefused) {
    ConsoleState state;
    state.input.resize(Console::kInputBytes + 1);
    EXPECT_TRUE(mentions_all(error_of([&] { Console("con0", {}, {}, 16, state); }), {"con0", "room"}));
}

// ---- Balloon

TEST(StateOfBalloon, ARequestOfSeveralTurnsGoesOnWhereItWas) {
    constexpr std::size_t kPages = Balloon::kMostPagesATurn + 1024;
    Balloon first("balloon0", kMiB, false);
    VirtioRig rig(first);
    ASSERT_TRUE(rig.start());
    std::vector<std::uint32_t> pages(kPages);
    std::iota(pages.begin(), pages.end(), 2048U); // From 8 MiB on, because missing memory would break a rule.
    const GuestAddress at = rig.allocate(kPages * sizeof(std::uint32_t));
    ASSERT_TRUE(rig.memory().copy_in(at, std::as_bytes(std::span(pages))));
    const auto head = rig.queue(0).add({{at, kPages * sizeof(std::uint32_t)}});
    first.doorbell(0); // the first of two turns
    first.set_target(2 * kMiB);
    BalloonState saved;
    auto* const second = rig.replace_device([&](const DeviceState& state) {
        saved = std::get<BalloonState>(state);
        return std::make_unique<Balloon>("balloon0", 0, false, saved);
    });
    ASSERT_TRUE(second);
    EXPECT_EQ(saved.done[0], Balloon::kMostPagesATurn);
    EXPECT_EQ(take_all_used(rig, 0), (std::vector<std::uint32_t>{head}));
    EXPECT_EQ(first.statistics().inflated + second->statistics().inflated, kPages * Balloon::kPageBytes);
    EXPECT_EQ(rig.driver().read_config<std::uint32_t>(0), 2 * kMiB / Balloon::kPageBytes);
    rig.queue(1).add({{at, 4096}});
    rig.ring(1);
    EXPECT_EQ(take_all_used(rig, 1).size(), 1U);
}

TEST(StateOfBalloon, MoreQueuesThanItHasAreRefused) {
    const BalloonState state{std::nullopt, 0, {0, 0, 0}};
    EXPECT_TRUE(mentions_all(error_of([&] { Balloon("balloon0", 0, false, state); }), {"balloon0", "queues"}));
}

// ---- Network

/// Both ends of a cable that keeps frames apart.
struct Link {
    Link() {
        std::array<int, 2> fds{-1, -1};
        EXPECT_EQ(::socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds.data()), 0);
        device = UniqueFd(fds[0]);
        host = UniqueFd(fds[1]);
    }
    void send(std::uint8_t fill, std::size_t bytes = 60) const {
        std::vector<std::uint8_t> frame(Tap::kHeaderBytes, 0);
        frame.resize(Tap::kHeaderBytes + bytes, fill);
        EXPECT_EQ(::write(host.get(), frame.data(), frame.size()), static_cast<ssize_t>(frame.size()));
    }
    [[nodiscard]] std::vector<std::uint8_t> heard() const {
        std::vector<std::uint8_t> fills;
        std::array<std::uint8_t, 2048> frame{};
        while (::read(host.get(), frame.data(), frame.size()) > 0) {
            fills.push_back(frame[Tap::kHeaderBytes]);
        }
        return fills;
    }

    UniqueFd device;
    UniqueFd host;
};

TEST(StateOfNet, FramesOfBothSidesAreNeitherLostNorDoubled) {
    Link before;
    Link after;
    Net first("net0", Tap(std::move(before.device)), make_mac_address("t"));
    VirtioRig rig(first);
    ASSERT_TRUE(rig.start());
    const GuestAddress at = rig.allocate(16 * 2048);
    std::vector<std::uint32_t> offered;
    for (int i = 0; i < 4; ++i) { // A frame needs one of them; the device takes more in advance.
        offered.push_back(rig.queue(0).add({{at + 2048ULL * static_cast<unsigned>(i), 2048, kWritable}}));
    }
    rig.driver().ring(0);
    before.send(1);
    EXPECT_EQ(take_all_used(rig, 0), (std::vector<std::uint32_t>{offered[0]}));
    const auto transmit = [&](std::uint8_t fill) {
        const GuestAddress frame = rig.allocate(72);
        EXPECT_TRUE(rig.memory().store(frame + Tap::kHeaderBytes, fill));
        rig.queue(1).add({{frame, 72}});
        rig.ring(1);
    };
    transmit(11);
    EXPECT_EQ(take_all_used(rig, 1).size(), 1U);
    transmit(12); // not yet seen by the device
    auto* const second = rig.replace_device([&](const DeviceState& state) {
        return std::make_unique<Net>("net0", std::make_unique<Tap>(std::move(after.device)), make_mac_address("t"),
                                     std::function<void()>{}, std::get<NetState>(state));
    });
    ASSERT_TRUE(second);
    EXPECT_EQ(take_all_used(rig, 1).size(), 1U);
    transmit(13);
    EXPECT_EQ(take_all_used(rig, 1).size(), 1U);
    EXPECT_EQ(before.heard(), (std::vector<std::uint8_t>{11}));
    EXPECT_EQ(after.heard(), (std::vector<std::uint8_t>{12, 13}));
    for (std::uint8_t fill = 2; fill <= 4; ++fill) {
        after.send(fill);
    }
    EXPECT_EQ(take_all_used(rig, 0), (std::vector<std::uint32_t>{offered[1], offered[2], offered[3]}));
    for (std::uint8_t fill = 1; fill <= 4; ++fill) {
        EXPECT_EQ(rig.memory().load<std::uint8_t>(at + 2048ULL * (fill - 1U) + Tap::kHeaderBytes), fill);
    }
}

TEST(StateOfNet, AFrameThatWaitsForBuffersIsKept) {
    Link before;
    Link after;
    Net first("net0", Tap(std::move(before.device)), make_mac_address("t"));
    VirtioRig rig(first);
    ASSERT_TRUE(rig.start());
    const GuestAddress at = rig.allocate(2 * 1024);
    rig.queue(0).add({{at, 1024, kWritable}});
    rig.driver().ring(0);
    before.send(7, 1500); // it needs another one
    EXPECT_TRUE(take_all_used(rig, 0).empty());
    NetState saved;
    auto* const second = rig.replace_device([&](const DeviceState& state) {
        saved = std::get<NetState>(state);
        return std::make_unique<Net>("net0", std::make_unique<Tap>(std::move(after.device)), make_mac_address("t"),
                                     std::function<void()>{}, saved);
    });
    ASSERT_TRUE(second);
    EXPECT_EQ(saved.frame.size(), Tap::kHeaderBytes + 1500U);
    rig.queue(0).add({{at + 1024, 1024, kWritable}});
    rig.ring(0);
    EXPECT_EQ(take_all_used(rig, 0).size(), 2U);
    EXPECT_EQ(rig.memory().load<std::uint8_t>(at + 1024), 7);
    EXPECT_EQ(second->statistics().received, 1U);
}

TEST(StateOfNet, ALinkThatWasDownIsUpWithANewOne) {
    constexpr std::uint64_t kStatusOffset = 6;
    Link link;
    Net first("net0", Tap(std::move(link.device)), make_mac_address("t"));
    VirtioRig rig(first);
    ASSERT_TRUE(rig.start());
    Link another;
    auto* const second = rig.replace_device([&](const DeviceState& state) {
        auto down = std::get<NetState>(state);
        down.link_up = false;
        return std::make_unique<Net>("net0", std::make_unique<Tap>(std::move(another.device)), make_mac_address("t"),
                                     std::function<void()>{}, down);
    });
    ASSERT_TRUE(second);
    const std::uint32_t generation = rig.driver().read(reg::kConfigGeneration);
    rig.settle();
    EXPECT_EQ(rig.driver().read_config<std::uint16_t>(kStatusOffset), 1U);
    EXPECT_NE(rig.driver().read(reg::kConfigGeneration), generation);
}

/// The RARP request in which `mac` asks for its own address, behind its header (RFC 903).
std::vector<std::uint8_t> announcement_of(const MacAddress& mac) {
    std::vector<std::uint8_t> frame(Tap::kHeaderBytes);
    const auto add = [&frame](std::initializer_list<std::uint8_t> bytes) { frame.insert(frame.end(), bytes); };
    const auto add_mac = [&] { frame.insert(frame.end(), mac.begin(), mac.end()); };
    add({0xff, 0xff, 0xff, 0xff, 0xff, 0xff});
    add_mac();
    add({0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3});
    add_mac();
    add({0, 0, 0, 0});
    add_mac();
    frame.resize(Tap::kHeaderBytes + 60);
    return frame;
}

/// A network that goes on from a state, and announces an address.
class StateOfAnnouncingNet : public ::testing::Test {
  protected:
    void SetUp() override {
        ASSERT_TRUE(rig.start());
        second = rig.replace_device([&](const DeviceState& state) {
            return std::make_unique<Net>("net0", std::make_unique<Tap>(std::move(after.device)), make_mac_address("t"),
                                         std::function<void()>{}, std::get<NetState>(state), kMac);
        });
        ASSERT_TRUE(second);
    }
    /// Serves the device until it has sent `count` frames in all.
    [[nodiscard]] bool sends(std::size_t count) {
        return rig.pump_until([&] {
            std::array<std::uint8_t, 2048> buffer{};
            for (ssize_t size = 0; (size = ::read(after.host.get(), buffer.data(), buffer.size())) > 0;) {
                frames.emplace_back(buffer.begin(), buffer.begin() + size);
            }
            return frames.size() >= count;
        });
    }
    /// Nothing more happens by itself: the device waits for its link and for turns of its two parts.
    [[nodiscard]] bool has_announced_all() const { return second->sources().size() == 3; }

    static constexpr MacAddress kMac{0x52, 0x54, 0, 1, 2, 3};
    Link before;
    Link after;
    Net first{"net0", Tap(std::move(before.device)), make_mac_address("t")};
    VirtioRig rig{first};
    Net* second = nullptr;
    std::vector<std::vector<std::uint8_t>> frames;
};

TEST_F(StateOfAnnouncingNet, ItsAddressIsAnnouncedAFewTimes) {
    EXPECT_FALSE(has_announced_all());
    ASSERT_TRUE(sends(Net::kAnnouncements));
    EXPECT_EQ(frames, std::vector(Net::kAnnouncements, announcement_of(kMac)));
    EXPECT_TRUE(has_announced_all());
    EXPECT_EQ(second->statistics().sent, 0U) << "they are none of the guest's";
}

// 5.1.6.5.4: the driver sees ANNOUNCE in the status, sends its announcements, and acknowledges.
TEST_F(StateOfAnnouncingNet, TheDriverIsAskedToAnnounceItself) {
    constexpr std::uint64_t kStatusOffset = 6;
    constexpr std::uint16_t kControl = 2;
    rig.settle();
    EXPECT_EQ(rig.driver().read_config<std::uint16_t>(kStatusOffset), 3U);
    const GuestAddress at = rig.allocate(16);
    ASSERT_TRUE(rig.memory().store(at, std::array<std::uint8_t, 3>{3, 0, 0xee}));
    rig.queue(kControl).add({{at, 2}, {at + 2, 1, kWritable}});
    rig.ring(kControl);
    ASSERT_TRUE(rig.wait_for_used(kControl));
    EXPECT_EQ(rig.memory().load<std::uint8_t>(at + 2), std::uint8_t{0});
    EXPECT_EQ(rig.driver().read_config<std::uint16_t>(kStatusOffset), 1U);
    rig.settle();
    EXPECT_EQ(rig.driver().read_config<std::uint16_t>(kStatusOffset), 1U) << "once is enough";
}

TEST_F(StateOfAnnouncingNet, AnotherDriverIsNotAskedToAnnounceItself) {
    constexpr std::uint64_t kStatusOffset = 6;
    rig.settle();
    ASSERT_TRUE(rig.reset());
    ASSERT_TRUE(rig.start());
    rig.settle();
    EXPECT_EQ(rig.driver().read_config<std::uint16_t>(kStatusOffset), 1U);
}

// A state that was saved before there was a control queue goes on without one.
TEST(StateOfNet, OfTheFirstVersionHasTwoQueues) {
    Link link;
    Net net("net0", Tap(std::move(link.device)), make_mac_address("t"));
    VirtioRig rig(net);
    ASSERT_TRUE(rig.start(~(1ULL << 17 | 1ULL << 21)));
    ASSERT_TRUE(rig.pump().pause());
    Negotiation::State state = rig.pump().state().negotiation;
    state.queues.resize(2);
    EXPECT_NO_THROW(Negotiation(
        net.identity(), rig.memory(), {}, [] {}, state));
    state.queues.resize(1);
    EXPECT_THROW(Negotiation(
                     net.identity(), rig.memory(), {}, [] {}, state),
                 Error);
}

TEST_F(StateOfAnnouncingNet, AnotherDriverIsNotAnnounced) {
    ASSERT_TRUE(sends(1));
    ASSERT_TRUE(rig.reset());
    ASSERT_TRUE(rig.start());
    EXPECT_TRUE(has_announced_all());
}

TEST_F(StateOfAnnouncingNet, AnAnnouncementWaitsForRoom) {
    // The link is full: the device is made on a cable that accepts nothing more.
    Link full;
    const std::array<std::uint8_t, 72> frame{};
    while (::write(full.device.get(), frame.data(), frame.size()) > 0) {
    }
    auto* const third = rig.replace_device([&](const DeviceState& state) {
        return std::make_unique<Net>("net0", std::make_unique<Tap>(std::move(full.device)), make_mac_address("t"),
                                     std::function<void()>{}, std::get<NetState>(state), kMac);
    });
    ASSERT_TRUE(third);
    rig.settle();
    const std::size_t waiting = full.heard().size();
    EXPECT_TRUE(rig.pump_until([&] { return !full.heard().empty(); }));
    EXPECT_GT(waiting, 0U);
}

TEST(StateOfNet, ThatBeginsAnewAnnouncesNothing) {
    Link link;
    Net net("net0", Tap(std::move(link.device)), make_mac_address("t"));
    VirtioRig rig(net);
    ASSERT_TRUE(rig.start());
    EXPECT_EQ(net.sources().size(), 3U);
    EXPECT_TRUE(link.heard().empty());
}

TEST(StateOfNet, AFrameThatIsNoneIsRefused) {
    Link link;
    NetState state;
    state.frame.resize(FrameLink::kMostBytes + 1);
    EXPECT_TRUE(mentions_all(
        error_of([&] { Net("net0", std::make_unique<Tap>(std::move(link.device)), make_mac_address("t"), {}, state); }),
        {"net0", "frame"}));
}

// ---- Disk

/// A driver of a disk whose I/O completes when the test says so.
class StateOfBlock : public ::testing::Test {
  protected:
    static constexpr std::uint8_t kUntouched = 0xee;
    struct Header {
        std::uint32_t type;
        std::uint32_t reserved;
        std::uint64_t sector;
    };
    struct Sent {
        std::uint32_t head;
        GuestAddress status;
    };

    void SetUp() override {
        std::filesystem::resize_file(path_, std::uintmax_t{256} * 512);
        first_ = make({});
        rig_ = std::make_unique<VirtioRig>(*first_);
        ASSERT_TRUE(rig_->start());
    }
    void TearDown() override {
        for (HeldDiskIo* const io : ios_) {
            io->release_all();
        }
        if (rig_) {
            rig_->settle();
        }
    }
    std::unique_ptr<Block> make(const BlockState& state) {
        auto io = std::make_unique<HeldDiskIo>();
        ios_.push_back(io.get());
        return std::make_unique<Block>("blk0", DiskImage(path_, {.lock = false}), std::move(io), BlockConfig{}, state);
    }
    Sent send(std::uint32_t type, std::uint64_t sector) {
        const GuestAddress header = rig_->allocate(sizeof(Header));
        const GuestAddress data = rig_->allocate(512);
        const GuestAddress status = rig_->allocate(1);
        EXPECT_TRUE(rig_->memory().store(header, Header{type, 0, sector}));
        EXPECT_TRUE(rig_->memory().store(status, kUntouched));
        std::uint32_t head = 0;
        if (type == 4) {
            head = rig_->queue(0).add({{header, sizeof(Header)}, {status, 1, kWritable}});
        } else {
            head = rig_->queue(0).add({{header, sizeof(Header)}, {data, 512, type == 0}, {status, 1, kWritable}});
        }
        rig_->ring(0);
        return {head, status};
    }
    std::uint8_t status_of(const Sent& sent) { return *rig_->memory().load<std::uint8_t>(sent.status); }

    TemporaryDirectory directory_;
    std::string path_ = directory_.write("disk", "");
    std::vector<HeldDiskIo*> ios_;
    std::unique_ptr<Block> first_;
    std::unique_ptr<VirtioRig> rig_;
};

TEST_F(StateOfBlock, WhatTheHostHasIsWaitedForAndTheRestIsDoneByTheNewOne) {
    const Sent done = send(0, 1);
    rig_->settle();
    ios_[0]->release_all();
    EXPECT_EQ(take_all_used(*rig_, 0), (std::vector<std::uint32_t>{done.head}));
    const Sent begun = send(1, 2);
    rig_->settle();
    ASSERT_EQ(ios_[0]->held().size(), 1U);
    first_->pause();
    EXPECT_FALSE(first_->is_paused());
    const Sent late = send(0, 3);
    rig_->driver().ring(0);
    rig_->settle();
    EXPECT_EQ(ios_[0]->held().size(), 1U) << "nothing more is taken";
    ios_[0]->release_all();
    EXPECT_TRUE(rig_->pump_until([&] { return first_->is_paused(); }));
    EXPECT_EQ(take_all_used(*rig_, 0), (std::vector<std::uint32_t>{begun.head}));
    EXPECT_EQ(status_of(begun), 0U);
    EXPECT_EQ(status_of(late), kUntouched);
    const auto second =
        rig_->replace_device([&](const DeviceState& state) { return make(std::get<BlockState>(state)); });
    ASSERT_TRUE(second);
    rig_->settle();
    ASSERT_EQ(ios_[1]->held().size(), 1U);
    EXPECT_EQ(ios_[1]->held().front().offset, 3 * 512U);
    const Sent after = send(0, 4);
    rig_->settle();
    ios_[1]->release_all();
    const auto heads = take_all_used(*rig_, 0);
    EXPECT_EQ(std::set<std::uint32_t>(heads.begin(), heads.end()), (std::set<std::uint32_t>{late.head, after.head}));
    EXPECT_EQ(heads.size(), 2U);
    EXPECT_EQ(ios_[0]->begun() + ios_[1]->begun(), 4U);
}

TEST_F(StateOfBlock, APausedDiskGoesOnWhenItResumes) {
    const Sent begun = send(0, 1);
    rig_->settle();
    first_->pause();
    send(0, 2);
    rig_->settle();
    first_->resume();
    EXPECT_FALSE(first_->is_paused());
    EXPECT_EQ(ios_[0]->held().size(), 2U);
    ios_[0]->release_all();
    EXPECT_EQ(take_all_used(*rig_, 0).size(), 2U);
    EXPECT_EQ(status_of(begun), 0U);
}

TEST_F(StateOfBlock, TheInterruptOfWhatIsGivenBackDoesNotWait) {
    send(0, 1);
    send(0, 2);
    rig_->settle();
    rig_->irq().take();
    first_->pause();
    ASSERT_TRUE(ios_[0]->release(HeldDiskIo::Kind::kRead));
    ASSERT_TRUE(ios_[0]->release(HeldDiskIo::Kind::kRead));
    ASSERT_TRUE(rig_->pump_until([&] { return first_->is_paused(); }));
    EXPECT_GE(rig_->irq().take(), 1U);
}

TEST_F(StateOfBlock, AFlushThatFailedFailsInTheNewOneToo) {
    const Sent failed = send(4, 0);
    rig_->settle();
    ASSERT_TRUE(ios_[0]->release(HeldDiskIo::Kind::kFlush, EIO));
    EXPECT_EQ(take_all_used(*rig_, 0), (std::vector<std::uint32_t>{failed.head}));
    const auto second =
        rig_->replace_device([&](const DeviceState& state) { return make(std::get<BlockState>(state)); });
    ASSERT_TRUE(second);
    const Sent again = send(4, 0);
    EXPECT_EQ(take_all_used(*rig_, 0), (std::vector<std::uint32_t>{again.head}));
    EXPECT_EQ(status_of(again), 1U);
}

TEST_F(StateOfBlock, ADiskOfAnotherSizeIsRefused) {
    EXPECT_TRUE(mentions_all(error_of([&] { make({.sectors = 255}); }),
                             {"disk", "has 128 KiB, and had 127.50 KiB (130560 bytes)"}));
    ios_.pop_back();
}

// ---- Sockets

/// A guest with one connection of a program.
class StateOfVsock : public ::testing::Test {
  protected:
    static constexpr std::uint32_t kGuestCid = 42;
    static constexpr std::uint16_t kToGuest = 0;
    static constexpr std::uint16_t kFromGuest = 1;
    static constexpr std::uint16_t kEvents = 2;
    enum Operation : std::uint16_t { kRequest = 1, kResponse, kReset };
    struct Header {
        std::uint64_t source_cid;
        std::uint64_t destination_cid;
        std::uint32_t source_port;
        std::uint32_t destination_port;
        std::uint32_t length;
        std::uint16_t type;
        std::uint16_t operation;
        std::uint32_t flags;
        std::uint32_t buffer_bytes;
        std::uint32_t forwarded_bytes;
    } __attribute__((packed));

    void SetUp() override {
        ASSERT_TRUE(rig_.start());
        const GuestAddress packets = rig_.allocate(32 * 1024);
        for (unsigned i = 0; i < 32; ++i) {
            const auto head = rig_.queue(kToGuest).add({{packets + i * 1024ULL, 1024, kWritable}});
            by_head_[head] = packets + i * 1024ULL;
        }
        rig_.driver().ring(kToGuest);
        for (unsigned i = 0; i < 2; ++i) {
            offer_event();
        }
        rig_.settle();
    }
    void offer_event() {
        event_at_ = rig_.allocate(4);
        EXPECT_TRUE(rig_.memory().store(event_at_, UINT32_MAX));
        rig_.queue(kEvents).add({{event_at_, 4, kWritable}});
        rig_.ring(kEvents);
    }
    UniqueFd connect(std::uint32_t port) {
        UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        path_.copy(address.sun_path, sizeof(address.sun_path) - 1);
        EXPECT_EQ(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
        const std::string words = "CONNECT " + std::to_string(port) + "\n";
        EXPECT_EQ(::send(fd.get(), words.data(), words.size(), MSG_NOSIGNAL), static_cast<ssize_t>(words.size()));
        return fd;
    }
    std::optional<Header> receive() {
        rig_.settle();
        const auto used = rig_.queue(kToGuest).take_used();
        return used ? rig_.memory().load<Header>(by_head_.at(static_cast<std::uint16_t>(used->id))) : std::nullopt;
    }
    void send(std::uint16_t operation, std::uint32_t guest_port, std::uint32_t host_port) {
        const GuestAddress at = rig_.allocate(sizeof(Header));
        EXPECT_TRUE(
            rig_.memory().store(at, Header{kGuestCid, 2, guest_port, host_port, 0, 1, operation, 0, 64 * 1024, 0}));
        rig_.queue(kFromGuest).add({{at, sizeof(Header)}});
        rig_.ring(kFromGuest);
    }
    Vsock* replace(std::uint32_t cid) {
        return rig_.replace_device([&](const DeviceState& state) {
            saved_ = std::get<VsockState>(state);
            path_ = directory_ / "w"; // the first one still has its own
            return std::make_unique<Vsock>("vsock0", VsockConfig{.guest_cid = cid, .path = path_}, saved_);
        });
    }

    TemporaryDirectory directory_;
    std::string path_ = directory_ / "v";
    Vsock first_{"vsock0", VsockConfig{.guest_cid = kGuestCid, .path = path_}};
    VirtioRig rig_{first_};
    VsockState saved_;
    std::map<std::uint16_t, GuestAddress> by_head_;
    GuestAddress event_at_{};
};

TEST_F(StateOfVsock, TheGuestIsToldThatItsConnectionsAreGoneBeforeNewOnesBegin) {
    const UniqueFd program = connect(1234);
    const auto request = receive();
    ASSERT_TRUE(request && request->operation == kRequest);
    const std::uint32_t old_port = request->source_port;
    send(kResponse, 1234, old_port);
    rig_.settle();
    EXPECT_FALSE(rig_.queue(kEvents).take_used());

    const Vsock* const second = replace(kGuestCid);
    ASSERT_TRUE(second);
    EXPECT_TRUE(saved_.has_driver);
    const UniqueFd early = connect(77);
    rig_.settle();
    const auto event = rig_.queue(kEvents).take_used();
    ASSERT_TRUE(event);
    EXPECT_EQ(event->length, 4U);
    EXPECT_FALSE(receive()) << "the guest has not dropped its connections yet";

    offer_event(); // as Linux's driver does after that
    const auto late = receive();
    ASSERT_TRUE(late);
    EXPECT_EQ(late->operation, kRequest);
    EXPECT_NE(late->source_port, old_port);
    send(kResponse, 77, late->source_port);
    rig_.settle();
    std::array<char, 32> words{};
    EXPECT_GT(::recv(early.get(), words.data(), words.size(), MSG_DONTWAIT), 0);
    EXPECT_FALSE(rig_.queue(kEvents).take_used()) << "told once";
}

TEST_F(StateOfVsock, ThatItIsToldWaitsForABufferForEvents) {
    ASSERT_TRUE(rig_.reset());
    ASSERT_TRUE(rig_.start());
    const Vsock* const second = replace(kGuestCid);
    ASSERT_TRUE(second);
    rig_.settle();
    EXPECT_FALSE(rig_.queue(kEvents).take_used());
    offer_event();
    rig_.settle();
    ASSERT_TRUE(rig_.queue(kEvents).take_used());
    EXPECT_EQ(rig_.memory().load<std::uint32_t>(event_at_), 0U); // VIRTIO_VSOCK_EVENT_TRANSPORT_RESET
}

TEST_F(StateOfVsock, AnotherCidShowsInTheConfiguration) {
    const Vsock* const second = replace(99);
    ASSERT_TRUE(second);
    rig_.settle();
    EXPECT_EQ(rig_.driver().read_config<std::uint64_t>(0), 99U);
}

TEST_F(StateOfVsock, ABufferThatItHoldsGoesBack) {
    const UniqueFd program = connect(5);
    const auto request = receive();
    ASSERT_TRUE(request);
    send(kResponse, 5, request->source_port);
    rig_.settle();
    const Vsock* const second = replace(kGuestCid);
    ASSERT_TRUE(second);
    offer_event();
    rig_.settle();
    offer_event();
    std::set<std::uint32_t> heads;
    for (std::uint32_t port = 100; port < 131; ++port) { // all that are left, one each
        const UniqueFd other = connect(port);
        rig_.settle();
        const auto used = rig_.queue(kToGuest).take_used();
        ASSERT_TRUE(used) << port;
        EXPECT_TRUE(heads.insert(used->id).second);
    }
}

TEST_F(StateOfVsock, APortThatProgramsDoNotGetIsRefused) {
    const VsockState state{true, kGuestCid, 80};
    EXPECT_TRUE(mentions_all(
        error_of([&] { Vsock("vsock0", VsockConfig{.guest_cid = kGuestCid, .path = directory_ / "x"}, state); }),
        {"vsock0", "80"}));
}

} // namespace
} // namespace vmm::devices::testing
