// Frames over a stream socket, and a virtio-net on one.

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "devices/frame_stream.hpp"
#include "devices/virtio/net.hpp"
#include "kvm/host/unique_fd.hpp"
#include "support/devices_hostile_driver.hpp"
#include "support/devices_virtio_driver.hpp"

namespace vmm::devices::testing {
namespace {

using virtio::Net;
using Bytes = std::vector<std::uint8_t>;

constexpr std::uint16_t kReceive = 0;
constexpr std::uint16_t kTransmit = 1;
constexpr std::uint32_t kHeader = FrameLink::kHeaderBytes;
constexpr MacAddress kMac{2, 0, 0, 0, 0, 1};

/// A stream; the test has its other end.
struct Ends {
    Ends() : device(-1) {
        std::array<int, 2> fds{-1, -1};
        EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()), 0);
        device = UniqueFd(fds[0]);
        host = UniqueFd(fds[1]);
    }

    void say(const Bytes& bytes) const {
        ASSERT_EQ(::send(host.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
    }
    /// Everything that can be read now.
    [[nodiscard]] Bytes heard() const {
        Bytes bytes(1 << 20);
        const ssize_t count = ::recv(host.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
        bytes.resize(count > 0 ? static_cast<std::size_t>(count) : 0);
        return bytes;
    }

    UniqueFd device;
    UniqueFd host;
};

Bytes with_length(const Bytes& frame) {
    const std::uint32_t length = htonl(static_cast<std::uint32_t>(frame.size()));
    Bytes bytes(sizeof(length));
    std::memcpy(bytes.data(), &length, sizeof(length));
    bytes.insert(bytes.end(), frame.begin(), frame.end());
    return bytes;
}

/// The return value of receive(), and the frame behind its header.
std::pair<std::ptrdiff_t, Bytes> receive(FrameStream& stream) {
    Bytes buffer(FrameLink::kMostBytes, 0xee);
    const std::array<iovec, 2> pieces{{{buffer.data(), 7}, {buffer.data() + 7, buffer.size() - 7}}};
    const std::ptrdiff_t count = stream.receive(pieces);
    if (count < 0) {
        return {count, {}};
    }
    EXPECT_TRUE(std::all_of(buffer.begin(), buffer.begin() + kHeader, [](std::uint8_t byte) { return byte == 0; }));
    return {count, Bytes(buffer.begin() + kHeader, buffer.begin() + count)};
}

int send(FrameStream& stream, const Bytes& frame) {
    Bytes bytes(kHeader, 0xff); // without a meaning here
    bytes.insert(bytes.end(), frame.begin(), frame.end());
    const std::array<iovec, 3> pieces{
        {{bytes.data(), 5}, {bytes.data() + 5, 20}, {bytes.data() + 25, bytes.size() - 25}}};
    return stream.send(pieces);
}

TEST(FrameStream, FindsFramesInHoweverManyPiecesTheyCome) {
    Ends ends;
    FrameStream stream(std::move(ends.device));
    const Bytes first(60, 1);
    const Bytes second(1514, 2);
    Bytes bytes = with_length(first);
    const Bytes more = with_length(second);
    bytes.insert(bytes.end(), more.begin(), more.end());
    EXPECT_EQ(receive(stream).first, -EAGAIN);
    std::vector<Bytes> seen;
    for (const std::uint8_t byte : bytes) {
        ends.say({byte});
        if (const auto [count, frame] = receive(stream); count > 0) {
            seen.push_back(frame);
        }
    }
    EXPECT_EQ(seen, (std::vector<Bytes>{first, second}));
    ends.say(bytes);
    EXPECT_EQ(receive(stream).second, first);
    EXPECT_EQ(receive(stream).second, second);
    EXPECT_EQ(receive(stream).first, -EAGAIN);
}

TEST(FrameStream, TakesTheLargestFrameAndSkipsWhatIsNone) {
    Ends ends;
    FrameStream stream(std::move(ends.device));
    const Bytes largest(FrameLink::kMostBytes - kHeader, 3);
    ends.say(with_length({}));
    ends.say(with_length(Bytes(13, 9)));
    ends.say(with_length(largest));
    EXPECT_EQ(receive(stream).second, largest);
}

TEST(FrameStream, IsDownWhereALengthIsNone) {
    Ends ends;
    FrameStream stream(std::move(ends.device));
    ends.say({0xff, 0xff, 0xff, 0xff});
    EXPECT_EQ(receive(stream).first, -ENOTCONN);
    EXPECT_FALSE(stream.is_up());
    EXPECT_EQ(send(stream, Bytes(60, 1)), -ENOTCONN);
}

TEST(FrameStream, IsDownOnceTheOtherEndIsGoneAndWhatItHadSaidIsRead) {
    Ends ends;
    FrameStream stream(std::move(ends.device));
    ends.say(with_length(Bytes(60, 7)));
    ends.host.reset();
    EXPECT_EQ(receive(stream).second, Bytes(60, 7));
    EXPECT_EQ(receive(stream).first, -ENOTCONN);
    EXPECT_FALSE(stream.is_up());
    EXPECT_FALSE(stream.has_rest());
}

TEST(FrameStream, SendsAFrameAfterItsLengthWithoutTheHeader) {
    Ends ends;
    FrameStream stream(std::move(ends.device));
    const Bytes frame(100, 0x42);
    EXPECT_EQ(send(stream, frame), 0);
    EXPECT_EQ(ends.heard(), with_length(frame));
    EXPECT_EQ(send(stream, Bytes(13, 1)), -EMSGSIZE);
    EXPECT_EQ(send(stream, Bytes(FrameLink::kMostBytes, 1)), -EMSGSIZE);
    EXPECT_TRUE(ends.heard().empty());
}

// ---- With a filter

/// A TCP segment that opens a connection with 198.51.100.1, or another address.
Bytes opening(std::array<std::uint8_t, 4> to = {198, 51, 100, 1}) {
    Bytes frame(12, 0x52);
    const Bytes packet{8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 2, 15, to[0], to[1], to[2], to[3]};
    frame.insert(frame.end(), packet.begin(), packet.end());
    frame.resize(54);
    frame[47] = 2; // SYN
    return frame;
}

TEST(FrameStreamWithAFilter, DecidesHoweverAFrameIsCut) {
    Ends ends;
    std::vector<std::string> kept;
    FrameStream stream(std::move(ends.device),
                       std::make_unique<FrameFilter>(FrameFilter::Network{}, [](std::uint32_t) { return false; }),
                       [&kept](const std::string& to) { kept.push_back(to); });
    for (const std::size_t piece : {1U, 2U, 3U, 7U, 12U, 13U, 46U, 100U}) {
        for (const bool is_allowed : {true, false}) {
            const Bytes frame = is_allowed ? opening() : opening({127, 0, 0, 1});
            Bytes bytes(kHeader, 0xff);
            bytes.insert(bytes.end(), frame.begin(), frame.end());
            std::vector<iovec> pieces;
            for (std::size_t at = 0; at < bytes.size(); at += piece) {
                pieces.push_back({bytes.data() + at, std::min(piece, bytes.size() - at)});
            }
            kept.clear();
            EXPECT_EQ(stream.send(pieces), is_allowed ? 0 : -EPERM) << piece;
            EXPECT_EQ(ends.heard(), is_allowed ? with_length(frame) : Bytes{}) << piece;
            EXPECT_EQ(kept.size(), is_allowed ? 0U : 1U);
        }
    }
    EXPECT_EQ(kept, (std::vector<std::string>{"TCP port 0 of 127.0.0.1"}));
}

TEST(FrameStreamWithAFilter, DoesNotJudgeWhatIsNotTheGuests) {
    Ends ends;
    FrameStream stream(std::move(ends.device),
                       std::make_unique<FrameFilter>(FrameFilter::Network{}, [](std::uint32_t) { return true; }), {});
    Bytes announcement(kHeader + 60, 0xff);
    announcement[kHeader + 12] = 0x80; // RARP
    announcement[kHeader + 13] = 0x35;
    const std::array<iovec, 1> pieces{{{announcement.data(), announcement.size()}}};
    EXPECT_EQ(stream.send(pieces), -EPERM);
    EXPECT_EQ(stream.send_own(pieces), 0);
    EXPECT_EQ(ends.heard(), with_length(Bytes(announcement.begin() + kHeader, announcement.end())));
}

TEST(FrameStreamWithAFilter, SendsWhatItHasJudgedThoughTheGuestChangesItMeanwhile) {
    Ends ends;
    Bytes bytes(kHeader);
    const Bytes frame = opening();
    bytes.insert(bytes.end(), frame.begin(), frame.end());
    FrameStream stream(std::move(ends.device),
                       std::make_unique<FrameFilter>(FrameFilter::Network{},
                                                     [&bytes](std::uint32_t) {
                                                         const std::array<std::uint8_t, 4> loopback{127, 0, 0, 1};
                                                         std::copy(loopback.begin(), loopback.end(),
                                                                   bytes.begin() + kHeader + 30);
                                                         return false;
                                                     }),
                       {});
    const std::array<iovec, 1> pieces{{{bytes.data(), bytes.size()}}};
    EXPECT_EQ(stream.send(pieces), 0);
    EXPECT_EQ(ends.heard(), with_length(frame));
}

TEST(FrameStream, KeepsWhatTheSocketHasNoRoomForAndSendsItLater) {
    Ends ends;
    FrameStream stream(std::move(ends.device));
    Bytes sent;
    bool had_rest = false;
    for (std::uint8_t i = 0; i < 200 && !had_rest; ++i) {
        const Bytes frame(60000, i);
        const int result = send(stream, frame);
        if (result == -EAGAIN) {
            break;
        }
        ASSERT_EQ(result, 0);
        const Bytes bytes = with_length(frame);
        sent.insert(sent.end(), bytes.begin(), bytes.end());
        had_rest = stream.has_rest();
    }
    if (had_rest) {
        EXPECT_EQ(send(stream, Bytes(60, 0)), -EAGAIN) << "frames do not mix";
    }
    Bytes seen;
    for (int i = 0; i < 1000 && seen.size() < sent.size(); ++i) {
        const Bytes bytes = ends.heard();
        seen.insert(seen.end(), bytes.begin(), bytes.end());
        stream.send_rest();
    }
    EXPECT_FALSE(stream.has_rest());
    EXPECT_EQ(seen, sent);
}

// ---- virtio-net on a stream

TEST(VirtioNetOnAStream, OffersNoOffloads) { // 5.1.3: nobody would compute the checksums
    Ends ends;
    const Net net("net0", std::make_unique<FrameStream>(std::move(ends.device)), kMac);
    constexpr std::uint64_t kWithoutOffloads = 1ULL << 5 | 1ULL << 15 | 1ULL << 16 | 1ULL << 17 | 1ULL << 21;
    EXPECT_EQ(net.identity().features, kWithoutOffloads);
}

TEST(VirtioNetOnAStream, MovesFramesBothWays) {
    Ends ends;
    Net net("net0", std::make_unique<FrameStream>(std::move(ends.device)), kMac);
    VirtioRig rig(net);
    ASSERT_TRUE(rig.start());
    const GuestAddress out = rig.allocate(128);
    rig.queue(kTransmit).add({{out, kHeader + 60}});
    rig.ring(kTransmit);
    ASSERT_TRUE(rig.wait_for_used(kTransmit));
    EXPECT_EQ(ends.heard(), with_length(Bytes(60, 0)));
    ends.say(with_length(Bytes(60, 5)));
    rig.settle();
    EXPECT_EQ(net.statistics().received, 0U) << "there is no buffer yet";
    const GuestAddress in = rig.allocate(2048);
    rig.queue(kReceive).add({{in, 2048, kWritable}});
    rig.ring(kReceive);
    const auto used = rig.wait_for_used(kReceive);
    ASSERT_TRUE(used);
    EXPECT_EQ(used->length, kHeader + 60);
    EXPECT_EQ(rig.memory().load<std::uint8_t>(in + kHeader + 59), 5);
}

TEST(VirtioNetOnAStream, WhoseOtherEndGoesAwayHasItsLinkDownAndGoesOn) { // 5.1.4.1
    constexpr std::uint32_t kConfigChange = 2;
    Ends ends;
    int lost = 0;
    Net net("net0", std::make_unique<FrameStream>(std::move(ends.device)), kMac, [&lost] { ++lost; });
    VirtioRig rig(net);
    ASSERT_TRUE(rig.start());
    rig.queue(kReceive).add({{rig.allocate(2048), 2048, kWritable}});
    rig.ring(kReceive);
    rig.settle();
    EXPECT_EQ(rig.driver().read_config<std::uint16_t>(6), 1U);
    rig.driver().take_interrupts();
    ends.host.reset();
    EXPECT_TRUE(rig.pump_until([&] { return rig.driver().read_config<std::uint16_t>(6) == 0; }));
    EXPECT_EQ(rig.driver().take_interrupts() & kConfigChange, kConfigChange);
    EXPECT_EQ(lost, 1);
    rig.settle();
    EXPECT_FALSE(rig.pump().turn()) << "nothing spins";
    // Sent frames go nowhere, and their buffers come back.
    rig.queue(kTransmit).add({{rig.allocate(128), 128}});
    rig.ring(kTransmit);
    ASSERT_TRUE(rig.wait_for_used(kTransmit));
    EXPECT_EQ(net.statistics().dropped, 1U);
    EXPECT_TRUE(rig.is_alive());
    ASSERT_TRUE(rig.start());
    EXPECT_EQ(rig.driver().read_config<std::uint16_t>(6), 0U) << "a reset does not bring it back";
    EXPECT_EQ(lost, 1);
}

TEST(VirtioNetOnAStream, WhoseOtherEndGoesAwayInAFloodLosesNoRequest) {
    Ends ends;
    Net net("net0", std::make_unique<FrameStream>(std::move(ends.device)), kMac);
    VirtioRig rig(net);
    ASSERT_TRUE(rig.start());
    const GuestAddress at = rig.allocate(60000);
    unsigned sent = 0;
    for (; sent < 100; ++sent) { // nobody reads them
        rig.queue(kTransmit).add({{at, 60000}});
        rig.ring(kTransmit);
        rig.settle();
    }
    EXPECT_LT(net.statistics().sent, 100U);
    ends.host.reset();
    for (unsigned i = 0; i < sent; ++i) {
        ASSERT_TRUE(rig.wait_for_used(kTransmit)) << i;
    }
    EXPECT_EQ(net.statistics().sent + net.statistics().dropped, 100U);
    EXPECT_TRUE(rig.is_alive());
}

TEST(VirtioNetOnAStream, SendsTheRestOfAFrameWhenThereIsRoom) {
    Ends ends;
    Net net("net0", std::make_unique<FrameStream>(std::move(ends.device)), kMac);
    VirtioRig rig(net);
    ASSERT_TRUE(rig.start());
    const GuestAddress at = rig.allocate(60000);
    for (unsigned i = 0; i < 20; ++i) {
        rig.queue(kTransmit).add({{at, 60000}});
        rig.ring(kTransmit);
    }
    rig.settle();
    std::size_t seen = 0;
    EXPECT_TRUE(rig.pump_until([&] {
        seen += ends.heard().size();
        return seen == 20 * (60000 - kHeader + 4);
    })) << seen;
}

class NetOnAStreamHostile : public ::testing::TestWithParam<HostileCase> {};

TEST_P(NetOnAStreamHostile, DriverIsAnsweredAndNothingElseIsTouched) {
    std::vector<UniqueFd> hosts;
    run_hostile_case(GetParam(),
                     {.make =
                          [&hosts] {
                              Ends ends;
                              hosts.push_back(std::move(ends.host));
                              return std::make_unique<Net>("net0",
                                                           std::make_unique<FrameStream>(std::move(ends.device)), kMac);
                          },
                      .queue = kTransmit,
                      .looks_at_once = true,
                      .request =
                          [](VirtioRig& rig) {
                              rig.queue(kTransmit).add({{rig.allocate(128), 128}});
                          },
                      .works =
                          [&hosts](VirtioRig& rig) {
                              rig.queue(kTransmit).add({{rig.allocate(128), 128}});
                              rig.ring(kTransmit);
                              return rig.pump_until([&] {
                                  Bytes bytes(1 << 20); // The frames of the attack are in the way.
                                  (void)::recv(hosts.back().get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
                                  return rig.queue(kTransmit).take_used().has_value();
                              });
                          }});
}

INSTANTIATE_TEST_SUITE_P(Every, NetOnAStreamHostile, ::testing::ValuesIn(hostile_cases()), hostile_case_name);

} // namespace
} // namespace vmm::devices::testing
