// virtio-net (virtio 1.2, 5.1) on a datagram socket instead of a tap.

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "devices/tap.hpp"
#include "devices/virtio/net.hpp"
#include "kvm/host/error.hpp"
#include "support/devices_hostile_driver.hpp"
#include "support/devices_virtio_driver.hpp"

namespace vmm::devices::testing {
namespace {

using virtio::Net;

constexpr std::uint16_t kReceive = 0;
constexpr std::uint16_t kTransmit = 1;
constexpr std::uint64_t kMergeBuffers = 1ULL << 15;
constexpr std::uint32_t kHeader = Tap::kHeaderBytes;

/// Both ends of the cable.
struct Cable {
    Cable() {
        std::array<int, 2> fds{-1, -1};
        EXPECT_EQ(::socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds.data()), 0);
        device = UniqueFd(fds[0]);
        host = UniqueFd(fds[1]);
    }

    UniqueFd device;
    UniqueFd host;
};

std::vector<std::uint8_t> frame_of(std::size_t bytes, std::uint8_t fill) {
    std::vector<std::uint8_t> frame(kHeader, 0);
    frame.resize(kHeader + bytes, fill);
    return frame;
}

TEST(VirtioNet, SendsAFrameWithItsHeader) { // 5.1.6.2
    Cable cable;
    Net net("net0", Tap(std::move(cable.device)), make_mac_address("t"));
    VirtioRig rig(net);
    ASSERT_TRUE(rig.start());
    const std::vector<std::uint8_t> frame = frame_of(60, 0x5a);
    const GuestAddress at = rig.allocate(frame.size());
    for (std::size_t i = 0; i < frame.size(); ++i) {
        ASSERT_TRUE(rig.memory().store(at + i, frame[i]));
    }
    rig.queue(kTransmit).add({{at, kHeader}, {at + kHeader, 60}});
    rig.ring(kTransmit);
    const auto used = rig.wait_for_used(kTransmit);
    ASSERT_TRUE(used);
    EXPECT_EQ(used->length, 0U);
    std::vector<std::uint8_t> seen(200);
    ASSERT_EQ(::read(cable.host.get(), seen.data(), seen.size()), static_cast<ssize_t>(frame.size()));
    seen.resize(frame.size());
    EXPECT_EQ(seen, frame);
    EXPECT_EQ(net.statistics().sent, 1U);
}

TEST(VirtioNet, DropsWhatIsNoFrameAndGoesOn) {
    Cable cable;
    Net net("net0", Tap(std::move(cable.device)), make_mac_address("t"));
    VirtioRig rig(net);
    ASSERT_TRUE(rig.start());
    const GuestAddress at = rig.allocate(128);
    rig.queue(kTransmit).add({{at, kHeader}});
    rig.ring(kTransmit);
    ASSERT_TRUE(rig.wait_for_used(kTransmit));
    EXPECT_EQ(net.statistics().dropped, 1U);
    rig.queue(kTransmit).add({{at, 72}});
    rig.ring(kTransmit);
    ASSERT_TRUE(rig.wait_for_used(kTransmit));
    EXPECT_EQ(net.statistics().sent, 1U);
}

TEST(VirtioNet, WaitsWithAFrameUntilTheGuestHasABuffer) {
    Cable cable;
    Net net("net0", Tap(std::move(cable.device)), make_mac_address("t"));
    VirtioRig rig(net);
    ASSERT_TRUE(rig.start());
    const std::vector<std::uint8_t> frame = frame_of(60, 0xa5);
    ASSERT_EQ(::write(cable.host.get(), frame.data(), frame.size()), static_cast<ssize_t>(frame.size()));
    rig.settle();
    EXPECT_EQ(net.statistics().received, 0U);
    const GuestAddress at = rig.allocate(2048);
    rig.queue(kReceive).add({{at, 2048, kWritable}});
    rig.ring(kReceive);
    const auto used = rig.wait_for_used(kReceive);
    ASSERT_TRUE(used);
    EXPECT_EQ(used->length, frame.size());
    EXPECT_EQ(*rig.memory().load<std::uint8_t>(at + kHeader), 0xa5);
    EXPECT_EQ(*rig.memory().load<std::uint16_t>(at + 10), 1U); // num_buffers
    EXPECT_EQ(net.statistics().received, 1U);
}

TEST(VirtioNet, SpreadsAFrameOverMergedBuffers) { // 5.1.6.4
    Cable cable;
    Net net("net0", Tap(std::move(cable.device)), make_mac_address("t"));
    VirtioRig rig(net);
    ASSERT_TRUE(rig.start());
    const GuestAddress at = rig.allocate(4096);
    for (std::uint64_t i = 0; i < 4; ++i) {
        rig.queue(kReceive).add({{at + i * 1024, 500, kWritable}});
    }
    rig.ring(kReceive);
    const std::vector<std::uint8_t> frame = frame_of(1400, 0x11);
    ASSERT_EQ(::write(cable.host.get(), frame.data(), frame.size()), static_cast<ssize_t>(frame.size()));
    // 5.1.6.4.1: all buffers but the last are filled completely.
    for (const std::size_t length : {std::size_t{500}, std::size_t{500}, frame.size() - 1000}) {
        const auto used = rig.wait_for_used(kReceive);
        ASSERT_TRUE(used);
        EXPECT_EQ(used->length, length);
    }
    EXPECT_EQ(*rig.memory().load<std::uint16_t>(at + 10), 3U);
}

TEST(VirtioNet, AFrameGoesStraightIntoBuffersThatHoldAny) { // 5.1.6.4
    Cable cable;
    Net net("net0", Tap(std::move(cable.device)), make_mac_address("t"));
    VirtioRig rig(net);
    ASSERT_TRUE(rig.start());
    constexpr std::uint64_t kBuffer = 4096;
    constexpr std::uint64_t kBuffers = 20; // Tap::kMostBytes and some more.
    const GuestAddress at = rig.allocate(kBuffers * kBuffer);
    for (std::uint64_t i = 0; i < kBuffers; ++i) {
        rig.queue(kReceive).add({{at + i * kBuffer, kBuffer, kWritable}});
    }
    rig.ring(kReceive);
    std::vector<std::uint8_t> frame = frame_of(10000, 0x11);
    frame.back() = 0x22;
    ASSERT_EQ(::write(cable.host.get(), frame.data(), frame.size()), static_cast<ssize_t>(frame.size()));
    for (const std::uint32_t length : {4096U, 4096U, static_cast<std::uint32_t>(frame.size() - 2 * kBuffer)}) {
        const auto used = rig.wait_for_used(kReceive);
        ASSERT_TRUE(used);
        EXPECT_EQ(used->length, length);
    }
    EXPECT_EQ(*rig.memory().load<std::uint16_t>(at + 10), 3U);
    EXPECT_EQ(*rig.memory().load<std::uint8_t>(at + kHeader), 0x11);
    EXPECT_EQ(*rig.memory().load<std::uint8_t>(at + (frame.size() - 1)), 0x22);
    EXPECT_EQ(*rig.memory().load<std::uint8_t>(at + frame.size()), 0);
    // The remaining buffers do not hold any frame, so this frame is copied.
    ASSERT_EQ(::write(cable.host.get(), frame.data(), frame.size()), static_cast<ssize_t>(frame.size()));
    ASSERT_TRUE(rig.wait_for_used(kReceive));
    EXPECT_EQ(*rig.memory().load<std::uint16_t>(at + 3 * kBuffer + 10), 3U);
    EXPECT_EQ(*rig.memory().load<std::uint8_t>(at + (3 * kBuffer + frame.size() - 1)), 0x22);
}

// 2.2.2: "MUST NOT offer a feature which requires another feature which was not offered", 5.1.3.1 which those are; and
// no feature of which 5.1.4.1 or 5.1.6.5 ask more than is done: no mtu, no pairs of queues, no filters.
TEST(VirtioNet, OffersWhatItDoesWithAllThatThatRequires) {
    Cable cable;
    const Net net("net0", Tap(std::move(cable.device)), make_mac_address("t"));
    // CSUM, GUEST_CSUM, MAC, GUEST_TSO4, GUEST_TSO6, GUEST_ECN, HOST_TSO4, HOST_TSO6, HOST_ECN, MRG_RXBUF, STATUS,
    // CTRL_VQ, GUEST_ANNOUNCE
    std::uint64_t features = 0;
    for (const unsigned bit : {0U, 1U, 5U, 7U, 8U, 9U, 11U, 12U, 13U, 15U, 16U, 17U, 21U}) {
        features |= 1ULL << bit;
    }
    EXPECT_EQ(net.identity().features, features);
    constexpr std::array<std::array<unsigned, 2>, 7> kRequires{
        {{7, 1}, {8, 1}, {9, 7}, {11, 0}, {12, 0}, {13, 11}, {21, 17}}}; // the first one the second one
    for (const auto& [feature, required] : kRequires) {
        EXPECT_LE(features >> feature & 1, features >> required & 1) << feature;
    }
}

/// Sends a command on the control queue, and returns its answer.
std::uint8_t answer_to(VirtioRig& rig, std::uint8_t kind, std::uint8_t command) {
    constexpr std::uint16_t kControl = 2;
    const GuestAddress at = rig.allocate(16);
    EXPECT_TRUE(rig.memory().store(at, std::array<std::uint8_t, 3>{kind, command, 0xee}));
    rig.queue(kControl).add({{at, 2}, {at + 2, 1, kWritable}});
    rig.ring(kControl);
    EXPECT_TRUE(rig.wait_for_used(kControl));
    return rig.memory().load<std::uint8_t>(at + 2).value_or(0xff);
}

// 5.1.6.5: if a command was not negotiated, the answer is VIRTIO_NET_ERR.
TEST(VirtioNet, ACommandThatThereIsNotIsAnsweredByAnError) {
    Cable cable;
    Net net("net0", Tap(std::move(cable.device)), make_mac_address("t"));
    VirtioRig rig(net);
    ASSERT_TRUE(rig.start());
    EXPECT_EQ(answer_to(rig, 0, 0), 1); // RX, PROMISC
    EXPECT_EQ(answer_to(rig, 3, 1), 1); // ANNOUNCE, something else
    EXPECT_EQ(answer_to(rig, 3, 0), 0); // ANNOUNCE, ACK: no announcement was requested, but that is no error
}

// A chain without a command, or without room for the answer, is given back, and the next chain is served.
TEST(VirtioNet, ACommandThatIsNoneHoldsNobodyUp) {
    constexpr std::uint16_t kControl = 2;
    Cable cable;
    Net net("net0", Tap(std::move(cable.device)), make_mac_address("t"));
    VirtioRig rig(net);
    ASSERT_TRUE(rig.start());
    const GuestAddress at = rig.allocate(16);
    rig.queue(kControl).add({{at, 1}});
    rig.queue(kControl).add({{at, 4, kWritable}});
    rig.ring(kControl);
    ASSERT_TRUE(rig.wait_for_used(kControl));
    ASSERT_TRUE(rig.wait_for_used(kControl));
    EXPECT_EQ(answer_to(rig, 3, 0), 0);
}

// 5.1.6.2.2: "MUST ignore flag bits that it does not recognize", "MUST NOT use the csum_start and csum_offset" without
// NEEDS_CSUM, "MUST NOT rely on hdr_len to be correct": the device looks at none of them, the tap knows what they are.
TEST(VirtioNet, LeavesTheHeaderOfWhatIsSentToTheTap) {
    Cable cable;
    Net net("net0", Tap(std::move(cable.device)), make_mac_address("t"));
    VirtioRig rig(net);
    ASSERT_TRUE(rig.start());
    std::vector<std::uint8_t> frame = frame_of(60, 0x22);
    std::fill_n(frame.begin(), kHeader, std::uint8_t{0xf8});
    const GuestAddress at = rig.allocate(frame.size());
    ASSERT_TRUE(rig.memory().copy_in(at, std::as_bytes(std::span(frame))));
    rig.queue(kTransmit).add({{at, static_cast<std::uint32_t>(frame.size())}});
    rig.ring(kTransmit);
    ASSERT_TRUE(rig.wait_for_used(kTransmit));
    std::vector<std::uint8_t> seen(200);
    ASSERT_EQ(::read(cable.host.get(), seen.data(), seen.size()), static_cast<ssize_t>(frame.size()));
    seen.resize(frame.size());
    EXPECT_EQ(seen, frame);
}

// 5.1.6.3.2: "MUST use only a single descriptor if VIRTIO_NET_F_MRG_RXBUF was not negotiated"; num_buffers is 1 then.
TEST(VirtioNet, WithoutMergingAFrameTakesOneBufferOrNone) {
    Cable cable;
    Net net("net0", Tap(std::move(cable.device)), make_mac_address("t"));
    VirtioRig rig(net);
    ASSERT_TRUE(rig.start(~kMergeBuffers));
    const GuestAddress at = rig.allocate(4096);
    rig.queue(kReceive).add({{at, 500, kWritable}});
    rig.queue(kReceive).add({{at + 1024, 500, kWritable}});
    rig.ring(kReceive);
    const std::vector<std::uint8_t> large = frame_of(700, 0x11);
    ASSERT_EQ(::write(cable.host.get(), large.data(), large.size()), static_cast<ssize_t>(large.size()));
    rig.settle();
    EXPECT_EQ(rig.queue(kReceive).used_index(), 0U);
    EXPECT_EQ(net.statistics().dropped, 1U);
    const std::vector<std::uint8_t> small = frame_of(60, 0x11);
    ASSERT_EQ(::write(cable.host.get(), small.data(), small.size()), static_cast<ssize_t>(small.size()));
    const auto used = rig.wait_for_used(kReceive);
    ASSERT_TRUE(used);
    EXPECT_EQ(used->length, small.size());
    EXPECT_EQ(*rig.memory().load<std::uint16_t>(at + 10), 1U);
}

// 5.1.6.4.1: "If VIRTIO_NET_F_GUEST_CSUM is not negotiated, the device MUST set flags to zero", and without
// segmentation "the device MUST set gso_type to VIRTIO_NET_HDR_GSO_NONE".
TEST(VirtioNet, AHeaderSaysNothingThatTheGuestDidNotAgreeTo) {
    constexpr std::uint64_t kGuestChecksum = 1ULL << 1;
    constexpr std::uint64_t kTso = 1ULL << 7 | 1ULL << 8;
    for (const bool direct : {false, true}) {
        for (const std::uint64_t without : {std::uint64_t{0}, kTso, kTso | kGuestChecksum}) {
            Cable cable;
            Net net("net0", Tap(std::move(cable.device)), make_mac_address("t"));
            VirtioRig rig(net);
            ASSERT_TRUE(rig.start(~without));
            std::vector<std::uint8_t> frame = frame_of(60, 0x11);
            frame[0] = 2; // DATA_VALID
            frame[1] = 1; // GSO_TCPV4
            const std::uint32_t bytes = direct ? Tap::kMostBytes : 2048;
            const GuestAddress at = rig.allocate(bytes);
            rig.queue(kReceive).add({{at, bytes, kWritable}});
            rig.ring(kReceive);
            ASSERT_EQ(::write(cable.host.get(), frame.data(), frame.size()), static_cast<ssize_t>(frame.size()));
            ASSERT_TRUE(rig.wait_for_used(kReceive));
            EXPECT_EQ(*rig.memory().load<std::uint8_t>(at), (without & kGuestChecksum) == 0 ? 2 : 0);
            EXPECT_EQ(*rig.memory().load<std::uint8_t>(at + 1), without == 0 ? 1 : 0);
        }
    }
}

// A deleted tap is always readable, but reads return nothing.
TEST(VirtioNet, ATapThatIsGoneIsLeftAlone) {
    std::array<int, 2> fds{-1, -1};
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds.data()), 0);
    UniqueFd host(fds[1]);
    Net net("net0", Tap(UniqueFd(fds[0])), make_mac_address("t"));
    VirtioRig rig(net);
    ASSERT_TRUE(rig.start());
    rig.queue(kReceive).add({{rig.allocate(2048), 2048, kWritable}});
    rig.ring(kReceive);
    rig.settle();
    host.reset();
    int turns = 0;
    while (turns < 100 && rig.pump().turn()) {
        ++turns;
    }
    EXPECT_LT(turns, 100) << "it spins";
    // Frames from the guest do not wait for it either.
    rig.queue(kTransmit).add({{rig.allocate(128), 72}});
    rig.ring(kTransmit);
    EXPECT_TRUE(rig.wait_for_used(kTransmit));
}

TEST(VirtioNet, AFrameTooLargeForAllBuffersIsDropped) {
    Cable cable;
    Net net("net0", Tap(std::move(cable.device)), make_mac_address("t"));
    VirtioRig rig(net);
    ASSERT_TRUE(rig.start(~kMergeBuffers));
    const GuestAddress at = rig.allocate(256);
    rig.queue(kReceive).add({{at, 256, kWritable}});
    rig.ring(kReceive);
    const std::vector<std::uint8_t> large = frame_of(1400, 0x11);
    ASSERT_EQ(::write(cable.host.get(), large.data(), large.size()), static_cast<ssize_t>(large.size()));
    const std::vector<std::uint8_t> small = frame_of(60, 0x22);
    ASSERT_EQ(::write(cable.host.get(), small.data(), small.size()), static_cast<ssize_t>(small.size()));
    const auto used = rig.wait_for_used(kReceive);
    ASSERT_TRUE(used);
    EXPECT_EQ(used->length, small.size());
    EXPECT_EQ(net.statistics().dropped, 1U);
}

/// One end of a cable. Only the kernel's buffer is at the other end: frames are dropped when it is full.
std::unique_ptr<Net> make_unplugged_net() {
    Cable cable;
    return std::make_unique<Net>("net0", Tap(std::move(cable.device)), make_mac_address("t"));
}

bool consumes_a_frame(VirtioRig& rig) {
    const GuestAddress at = rig.allocate(128);
    rig.queue(kTransmit).add({{at, 72}});
    rig.ring(kTransmit);
    return rig.wait_for_used(kTransmit).has_value();
}

class NetTransmitHostile : public ::testing::TestWithParam<HostileCase> {};

TEST_P(NetTransmitHostile, DriverIsAnsweredAndNothingElseIsTouched) {
    run_hostile_case(GetParam(), {.make = make_unplugged_net,
                                  .queue = kTransmit,
                                  .looks_at_once = true,
                                  .request =
                                      [](VirtioRig& rig) {
                                          rig.queue(kTransmit).add({{rig.allocate(128), 72}});
                                      },
                                  .works = consumes_a_frame});
}

INSTANTIATE_TEST_SUITE_P(Every, NetTransmitHostile, ::testing::ValuesIn(hostile_cases()), hostile_case_name);

/// The host sends all the time, so that the device looks at the receive queue.
class NetReceiveHostile : public ::testing::TestWithParam<HostileCase> {};

TEST_P(NetReceiveHostile, DriverIsAnsweredAndNothingElseIsTouched) {
    UniqueFd host;
    const std::vector<std::uint8_t> frame = frame_of(60, 0x5a);
    const auto send = [&host, &frame] { static_cast<void>(::write(host.get(), frame.data(), frame.size())); };
    run_hostile_case(GetParam(), {.make =
                                      [&host, &send] {
                                          Cable cable;
                                          host = std::move(cable.host);
                                          send();
                                          send();
                                          return std::make_unique<Net>("net0", Tap(std::move(cable.device)),
                                                                       make_mac_address("t"));
                                      },
                                  .queue = kReceive,
                                  .looks_at_once = false,
                                  .request =
                                      [&send](VirtioRig& rig) {
                                          rig.queue(kReceive).add({{rig.allocate(2048), 2048, kWritable}});
                                          send();
                                      },
                                  .works =
                                      [&send](VirtioRig& rig) {
                                          rig.queue(kReceive).add({{rig.allocate(2048), 2048, kWritable}});
                                          rig.ring(kReceive);
                                          send();
                                          return rig.wait_for_used(kReceive).has_value();
                                      }});
}

INSTANTIATE_TEST_SUITE_P(Every, NetReceiveHostile, ::testing::ValuesIn(hostile_cases()), hostile_case_name);

TEST(MacAddress, IsReadAsItIsWritten) {
    EXPECT_EQ(parse_mac_address("52:54:00:12:aB:Ff"), (MacAddress{0x52, 0x54, 0x00, 0x12, 0xab, 0xff}));
    for (const std::string bad : {"", "52:54:00:12:34", "52-54-00-12-34-56", "52:54:00:12:34:5g", "53:54:00:12:34:56",
                                  "00:00:00:00:00:00", "52:54:00:12:34:56:78"}) {
        EXPECT_THROW(static_cast<void>(parse_mac_address(bad)), Error) << bad;
    }
}

TEST(MacAddress, MadeOnesAreLocalAndOfOne) {
    for (const char* text : {"tap0", "tap1", ""}) {
        EXPECT_EQ(make_mac_address(text)[0] & 3, 2) << text;
    }
    EXPECT_NE(make_mac_address("tap0"), make_mac_address("tap1"));
}

TEST(Tap, NamesThatNoInterfaceCanHaveAreRefused) {
    for (const std::string bad : {"", ".", "..", "a/b", "a:b", "a b", "tap%d", "sixteen_letters_"}) {
        EXPECT_THROW(check_interface_name(bad), Error) << bad;
    }
    EXPECT_NO_THROW(check_interface_name("fifteen_letters"));
}

} // namespace
} // namespace vmm::devices::testing
