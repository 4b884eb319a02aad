// A network interface of several pairs of queues (virtio 1.2, 5.1.6.5.5), on datagram sockets instead of a tap.

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "devices/frame_link.hpp"
#include "devices/virtio/net.hpp"
#include "kvm/host/error.hpp"
#include "support/devices_hostile_driver.hpp"
#include "support/devices_virtio_driver.hpp"
#include "support/host_errors.hpp"

namespace vmm::devices::testing {
namespace {

using virtio::DeviceState;
using virtio::Net;
using virtio::NetState;
using vmm::testing::error_of;
using vmm::testing::mentions;

constexpr std::uint16_t kPairs = 3;
constexpr std::uint16_t kControlOfAll = 2 * kPairs;
constexpr std::uint64_t kMultiQueueFeature = 1ULL << 22;
constexpr std::uint32_t kFrameBytes = FrameLink::kHeaderBytes + 60;
constexpr MacAddress kGuest{0x52, 0x54, 0, 0, 0, 9};

constexpr std::uint16_t receive_of(unsigned pair) {
    return static_cast<std::uint16_t>(2 * pair);
}
constexpr std::uint16_t transmit_of(unsigned pair) {
    return static_cast<std::uint16_t>(2 * pair + 1);
}

/// One of several links of an interface. It notes the calls that it gets.
class QueueLink final : public FrameLink {
  public:
    struct Told {
        bool attached = false;
        bool refuses = false; ///< to be attached
    };
    QueueLink(UniqueFd fd, Told& told) : tap_(std::move(fd)), told_(told) {}

    [[nodiscard]] int fd() const noexcept override { return tap_.fd(); }
    [[nodiscard]] bool has_offloads() const noexcept override { return true; }
    void set_offloads(const FrameOffloads& /*offloads*/) noexcept override {}
    [[nodiscard]] bool set_attached(bool attached) noexcept override {
        const bool done = !attached || !told_.refuses;
        told_.attached = done ? attached : told_.attached;
        return done;
    }
    [[nodiscard]] std::ptrdiff_t receive(std::span<const iovec> buffers) noexcept override {
        return tap_.receive(buffers);
    }
    [[nodiscard]] int send(std::span<const iovec> frame) noexcept override { return tap_.send(frame); }
    [[nodiscard]] bool is_up() const noexcept override { return tap_.is_up(); }

  private:
    Tap tap_;
    Told& told_;
};

/// The host's ends of the links.
struct Host {
    explicit Host(unsigned pairs = kPairs) : told(pairs) {
        told[0].attached = true;
        for (unsigned i = 0; i < pairs; ++i) {
            std::array<int, 2> fds{-1, -1};
            EXPECT_EQ(::socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds.data()), 0);
            links.push_back(std::make_unique<QueueLink>(UniqueFd(fds[0]), told[i]));
            ends.emplace_back(fds[1]);
        }
    }
    void send(unsigned pair, std::uint8_t fill) const {
        std::vector<std::uint8_t> frame(kFrameBytes, fill);
        std::fill_n(frame.begin(), FrameLink::kHeaderBytes, 0);
        EXPECT_EQ(::write(ends[pair].get(), frame.data(), frame.size()), static_cast<ssize_t>(frame.size()));
    }
    [[nodiscard]] bool hears(unsigned pair) const {
        std::array<std::uint8_t, 256> frame{};
        return ::read(ends[pair].get(), frame.data(), frame.size()) == kFrameBytes;
    }
    [[nodiscard]] std::vector<bool> attached() const {
        std::vector<bool> all;
        for (const QueueLink::Told& each : told) {
            all.push_back(each.attached);
        }
        return all;
    }

    std::deque<QueueLink::Told> told;
    std::vector<std::unique_ptr<FrameLink>> links;
    std::vector<UniqueFd> ends;
};

/// Sends a command, and returns the answer (0: done).
std::optional<std::uint8_t> command(VirtioRig& rig, std::uint16_t queue, const std::vector<std::uint8_t>& bytes) {
    const GuestAddress at = rig.allocate(16);
    for (std::size_t i = 0; i < bytes.size(); ++i) {
        EXPECT_TRUE(rig.memory().store(at + i, bytes[i]));
    }
    EXPECT_TRUE(rig.memory().store(at + 15, std::uint8_t{0xee}));
    rig.queue(queue).add({{at, static_cast<std::uint32_t>(bytes.size())}, {at + 15, 1, kWritable}});
    rig.ring(queue);
    return rig.wait_for_used(queue) ? rig.memory().load<std::uint8_t>(at + 15) : std::nullopt;
}
std::optional<std::uint8_t> use_pairs(VirtioRig& rig, std::uint16_t pairs) {
    return command(rig, kControlOfAll, {4, 0, static_cast<std::uint8_t>(pairs), static_cast<std::uint8_t>(pairs >> 8)});
}

/// True if a frame that the host sends on this pair's link reaches the guest by that pair.
bool receives(VirtioRig& rig, const Host& host, unsigned pair) {
    rig.queue(receive_of(pair)).add({{rig.allocate(2048), 2048, kWritable}});
    rig.ring(receive_of(pair));
    host.send(pair, 7);
    rig.settle();
    return rig.queue(receive_of(pair)).take_used().has_value();
}

bool sends(VirtioRig& rig, const Host& host, unsigned pair) {
    rig.queue(transmit_of(pair)).add({{rig.allocate(kFrameBytes), kFrameBytes}});
    rig.ring(transmit_of(pair));
    rig.settle();
    return rig.queue(transmit_of(pair)).take_used() && host.hears(pair);
}

class NetPairsTest : public ::testing::Test {
  protected:
    Host host;
    Host next; ///< of a device that takes the place of the first one, which the rig owns
    Net net{"net0", std::move(host.links), kGuest};
    VirtioRig rig{net};
};

TEST_F(NetPairsTest, SaysHowManyThereAre) { // 5.1.4
    ASSERT_TRUE(rig.start());
    EXPECT_EQ(rig.driver().device_features() & kMultiQueueFeature, kMultiQueueFeature);
    EXPECT_EQ(rig.driver().read_config<std::uint16_t>(8), kPairs);
    EXPECT_EQ(net.lanes().size(), kPairs - 1U);
}

TEST_F(NetPairsTest, OneOfThemIsUsedUntilTheDriverAsksForMore) {
    ASSERT_TRUE(rig.start());
    EXPECT_TRUE(receives(rig, host, 0));
    EXPECT_FALSE(receives(rig, host, 1));
    EXPECT_EQ(host.attached(), (std::vector<bool>{true, false, false}));
    EXPECT_EQ(use_pairs(rig, 3), 0);
    EXPECT_EQ(host.attached(), (std::vector<bool>{true, true, true}));
    rig.settle();
    EXPECT_TRUE(rig.queue(receive_of(1)).take_used()) << "the frame that waited";
    for (unsigned pair = 0; pair < kPairs; ++pair) {
        EXPECT_TRUE(receives(rig, host, pair)) << pair;
        EXPECT_TRUE(sends(rig, host, pair)) << pair;
    }
    EXPECT_EQ(net.statistics().sent, kPairs);
}

// 5.1.6.5.5.2: no frame comes by the other pairs after the command is used.
TEST_F(NetPairsTest, FewerAreUsedAtOnce) {
    ASSERT_TRUE(rig.start());
    ASSERT_EQ(use_pairs(rig, 3), 0);
    ASSERT_EQ(use_pairs(rig, 2), 0);
    EXPECT_EQ(host.attached(), (std::vector<bool>{true, true, false}));
    EXPECT_TRUE(receives(rig, host, 1));
    EXPECT_FALSE(receives(rig, host, 2));
    EXPECT_TRUE(sends(rig, host, 2)) << "what was under way there still goes";
}

TEST_F(NetPairsTest, AResetUsesOneAgain) {
    ASSERT_TRUE(rig.start());
    ASSERT_EQ(use_pairs(rig, 3), 0);
    ASSERT_TRUE(rig.reset());
    EXPECT_EQ(host.attached(), (std::vector<bool>{true, false, false}));
    ASSERT_TRUE(rig.start());
    EXPECT_TRUE(receives(rig, host, 0));
    EXPECT_FALSE(receives(rig, host, 2));
}

TEST_F(NetPairsTest, NumbersThatThereAreNotAreAnsweredByAnError) {
    ASSERT_TRUE(rig.start());
    ASSERT_EQ(use_pairs(rig, 2), 0);
    for (const std::uint16_t pairs : std::array<std::uint16_t, 4>{0, 4, 0x8000, 0xffff}) {
        EXPECT_EQ(use_pairs(rig, pairs), 1) << pairs;
    }
    EXPECT_EQ(command(rig, kControlOfAll, {4, 0, 3}), 1) << "half a number";
    EXPECT_EQ(command(rig, kControlOfAll, {4, 1, 3, 0}), 1) << "RSS is not offered";
    EXPECT_EQ(command(rig, kControlOfAll, {4}), 1);
    EXPECT_EQ(net.pairs_in_use(), 2U);
    EXPECT_TRUE(rig.is_alive());
}

TEST_F(NetPairsTest, ThatTheHostRefusesAreAnsweredByAnErrorAndTheOthersStay) {
    ASSERT_TRUE(rig.start());
    host.told[2].refuses = true;
    EXPECT_EQ(use_pairs(rig, 3), 1);
    EXPECT_EQ(host.attached(), (std::vector<bool>{true, false, false}));
    EXPECT_EQ(use_pairs(rig, 2), 0);
    EXPECT_EQ(host.attached(), (std::vector<bool>{true, true, false}));
}

// 5.1.6.5.5.1: a driver sets up the queues before it asks for them. Frames that come by other queues would be lost.
TEST_F(NetPairsTest, WhoseQueuesAreNotSetUpAreNotUsed) {
    rig.driver().write(reg::kStatus, 0);
    ASSERT_TRUE(rig.driver().negotiate(rig.driver().device_features()));
    rig.set_up_queues();
    for (const std::uint16_t index : {receive_of(0), transmit_of(0), receive_of(1), kControlOfAll}) {
        ASSERT_TRUE(rig.driver().enable_queue(index, rig.queue(index).geometry()));
    }
    rig.driver().add_status(virtio::kStatusDriverOk);
    rig.settle();
    EXPECT_EQ(use_pairs(rig, 2), 1);
    EXPECT_EQ(host.attached(), (std::vector<bool>{true, false, false}));
    ASSERT_TRUE(rig.driver().enable_queue(transmit_of(1), rig.queue(transmit_of(1)).geometry()));
    rig.settle();
    EXPECT_EQ(use_pairs(rig, 2), 0);
    EXPECT_TRUE(receives(rig, host, 1));
}

// 5.1.2: in this case the control queue is the third queue.
TEST_F(NetPairsTest, ADriverThatKnowsOfOneHasItsControlQueueAfterThat) {
    ASSERT_TRUE(rig.start(~kMultiQueueFeature));
    constexpr std::uint16_t kControlAfterOne = 2;
    EXPECT_EQ(command(rig, kControlAfterOne, {4, 0, 1, 0}), 1) << "it has not accepted that";
    EXPECT_TRUE(receives(rig, host, 0));
    EXPECT_TRUE(sends(rig, host, 0));
    EXPECT_FALSE(receives(rig, host, 2)) << "no such queue is looked at";
    ASSERT_TRUE(rig.pump().pause());
    rig.pump().device().resume();
    EXPECT_TRUE(sends(rig, host, 0));
    EXPECT_TRUE(rig.is_alive());
}

TEST_F(NetPairsTest, AQueueOfOneIsResetAloneAndComesBack) { // 2.6.1
    ASSERT_TRUE(rig.start());
    ASSERT_EQ(use_pairs(rig, 2), 0);
    rig.driver().write(reg::kQueueSel, receive_of(1));
    rig.driver().write(reg::kQueueReset, 1);
    rig.settle();
    EXPECT_TRUE(receives(rig, host, 0));
    host.send(1, 7);
    rig.settle();
    rig.queue(receive_of(1)) =
        DriverQueue(rig.memory(), rig.queue(receive_of(1)).geometry().descriptors, rig.queue(receive_of(1)).size());
    ASSERT_TRUE(rig.driver().enable_queue(receive_of(1), rig.queue(receive_of(1)).geometry()));
    EXPECT_TRUE(receives(rig, host, 1));
}

TEST_F(NetPairsTest, TheLinkIsLostOnceWhicheverOfThemFindsOut) {
    Host other;
    int losses = 0;
    Net losing("net1", std::move(other.links), kGuest, [&] { ++losses; });
    VirtioRig losing_rig(losing);
    ASSERT_TRUE(losing_rig.start());
    ASSERT_EQ(use_pairs(losing_rig, 3), 0);
    for (const UniqueFd& end : other.ends) { // An empty datagram looks like a deleted tap.
        EXPECT_EQ(::send(end.get(), nullptr, 0, 0), 0);
    }
    for (unsigned pair = 0; pair < kPairs; ++pair) {
        losing_rig.queue(receive_of(pair)).add({{losing_rig.allocate(2048), 2048, kWritable}});
        losing_rig.ring(receive_of(pair));
    }
    EXPECT_TRUE(losing_rig.pump_until([&] { return losses != 0; }));
    losing_rig.settle();
    EXPECT_EQ(losses, 1);
    EXPECT_EQ(losing_rig.driver().read_config<std::uint16_t>(6) & 1U, 0U);
}

// ---- State

TEST_F(NetPairsTest, GoOnAsManyAsWereUsedWithTheFramesThatTheyHeld) {
    ASSERT_TRUE(rig.start());
    ASSERT_EQ(use_pairs(rig, 2), 0);
    rig.settle();
    host.send(1, 0x5a); // there is no buffer for it
    rig.settle();
    NetState saved;
    auto* const second = rig.replace_device([&](const DeviceState& state) {
        saved = std::get<NetState>(state);
        return std::make_unique<Net>("net0", std::move(next.links), kGuest, std::function<void()>{}, saved);
    });
    ASSERT_TRUE(second);
    EXPECT_EQ(saved.pairs->used, 2U);
    EXPECT_EQ(saved.pairs->frames.at(0).size(), kFrameBytes);
    EXPECT_EQ(next.attached(), (std::vector<bool>{true, true, false}));
    rig.settle();
    const GuestAddress at = rig.allocate(2048);
    rig.queue(receive_of(1)).add({{at, 2048, kWritable}});
    rig.ring(receive_of(1));
    ASSERT_TRUE(rig.wait_for_used(receive_of(1)));
    EXPECT_EQ(rig.memory().load<std::uint8_t>(at + FrameLink::kHeaderBytes), 0x5a);
    EXPECT_TRUE(receives(rig, next, 0));
    EXPECT_TRUE(sends(rig, next, 1));
    EXPECT_FALSE(receives(rig, next, 2));
    EXPECT_EQ(use_pairs(rig, 3), 0);
    EXPECT_TRUE(receives(rig, next, 2));
}

TEST(NetPairsState, ThatIsOfAnotherNumberIsRefused) {
    for (const NetState::Pairs& pairs :
         {NetState::Pairs{1, {{}}}, NetState::Pairs{0, {{}, {}}}, NetState::Pairs{4, {{}, {}}}}) {
        Host other;
        NetState state;
        state.pairs = pairs;
        EXPECT_TRUE(mentions(error_of([&] { Net("net0", std::move(other.links), kGuest, {}, state); }),
                             "net0: it had another number of queues"));
    }
}

// ---- A driver that breaks every rule, in a queue of a pair that another thread serves

class NetPairHostile : public ::testing::TestWithParam<HostileCase> {};

TEST_P(NetPairHostile, DriverIsAnsweredAndNothingElseIsTouched) {
    std::optional<Host> other;
    run_hostile_case(GetParam(), {.make =
                                      [&other] {
                                          other.emplace();
                                          other->ends.clear(); // nobody reads there, so frames are dropped
                                          return std::make_unique<Net>("net0", std::move(other->links), kGuest);
                                      },
                                  .queue = transmit_of(1),
                                  .looks_at_once = true,
                                  .request =
                                      [](VirtioRig& hostile) {
                                          hostile.queue(transmit_of(1)).add({{hostile.allocate(128), kFrameBytes}});
                                      },
                                  .works =
                                      [](VirtioRig& good) {
                                          good.queue(transmit_of(1)).add({{good.allocate(128), kFrameBytes}});
                                          good.ring(transmit_of(1));
                                          return good.wait_for_used(transmit_of(1)).has_value();
                                      }});
}

INSTANTIATE_TEST_SUITE_P(Every, NetPairHostile, ::testing::ValuesIn(hostile_cases()), hostile_case_name);

} // namespace
} // namespace vmm::devices::testing
