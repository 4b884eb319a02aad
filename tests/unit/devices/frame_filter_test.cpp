// The frames that a guest of `--net user` may send, byte by byte.

#include "devices/frame_filter.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <ostream>
#include <span>
#include <string>
#include <vector>

namespace vmm::devices {

// For GoogleTest.
void PrintTo(FrameFilter::Verdict verdict, std::ostream* out) {
    constexpr const char* kNames[]{"pass", "malformed", "not served", "bad source", "group", "host's own"};
    *out << kNames[static_cast<int>(verdict)];
}

namespace {

using Bytes = std::vector<std::uint8_t>;
using Verdict = FrameFilter::Verdict;

constexpr std::uint32_t number(unsigned a, unsigned b, unsigned c, unsigned d) {
    return a << 24 | b << 16 | c << 8 | d;
}

constexpr std::uint32_t kGuest = number(10, 0, 2, 15);
constexpr std::uint32_t kGateway = number(10, 0, 2, 2);
constexpr std::uint32_t kNameServer = number(10, 0, 2, 3);
constexpr std::uint32_t kHost = number(192, 0, 2, 7);
constexpr std::uint32_t kElsewhere = number(198, 51, 100, 1);
constexpr std::uint32_t kBroadcast = 0xffffffff;
constexpr std::uint8_t kIcmp = 1;
constexpr std::uint8_t kTcp = 6;
constexpr std::uint8_t kUdp = 17;
constexpr std::uint8_t kSyn = 2;
constexpr std::uint8_t kAck = 16;

void put16(Bytes& out, unsigned value) {
    out.push_back(static_cast<std::uint8_t>(value >> 8));
    out.push_back(static_cast<std::uint8_t>(value));
}
void put32(Bytes& out, std::uint32_t value) {
    put16(out, value >> 16);
    put16(out, value & 0xffff);
}

Bytes ethernet(unsigned type, const Bytes& payload) {
    Bytes frame(12, 0x52);
    put16(frame, type);
    frame.insert(frame.end(), payload.begin(), payload.end());
    return frame;
}

struct Packet {
    std::uint8_t protocol = kTcp;
    std::uint32_t from = kGuest;
    std::uint32_t to = kElsewhere;
    std::uint16_t from_port = 40000;
    std::uint16_t to_port = 80;
    std::uint8_t flags = kSyn;
    unsigned fragment = 0;
    unsigned options = 0; ///< words of them
};

Bytes ip(const Packet& packet) {
    Bytes payload;
    put16(payload, packet.from_port);
    put16(payload, packet.to_port);
    payload.resize(packet.protocol == kTcp ? 20 : 8);
    if (packet.protocol == kTcp) {
        payload[12] = 5 << 4;
        payload[13] = packet.flags;
    }
    const unsigned header_bytes = 20 + packet.options * 4;
    Bytes bytes{static_cast<std::uint8_t>(0x40 | header_bytes / 4), 0};
    put16(bytes, static_cast<unsigned>(header_bytes + payload.size()));
    put16(bytes, 0);
    put16(bytes, packet.fragment);
    put16(bytes, 64U << 8 | packet.protocol);
    put16(bytes, 0);
    put32(bytes, packet.from);
    put32(bytes, packet.to);
    bytes.resize(header_bytes, 1);
    bytes.insert(bytes.end(), payload.begin(), payload.end());
    return bytes;
}
Bytes frame_of(const Packet& packet) {
    return ethernet(0x0800, ip(packet));
}

class FrameFilterTest : public ::testing::Test {
  protected:
    Verdict judge_frame(const Bytes& frame) const {
        const auto bytes = std::as_bytes(std::span(frame));
        return filter_.to_host(bytes.first(std::min(bytes.size(), FrameFilter::kHeadBytes)), bytes.size());
    }
    Verdict judge(const Packet& packet) const { return judge_frame(frame_of(packet)); }
    void to_guest(const Packet& packet) {
        const Bytes frame = frame_of(packet);
        filter_.to_guest(std::as_bytes(std::span(frame)));
    }

    FrameFilter::Clock::time_point now_{};
    FrameFilter filter_{{kGateway, kNameServer}, [](std::uint32_t to) { return to == kHost; }, [this] { return now_; }};
};

TEST_F(FrameFilterTest, LetsThroughWhatGoesToOthers) {
    for (const std::uint8_t protocol : {kTcp, kUdp, kIcmp}) {
        for (const std::uint32_t to : {kElsewhere, kGateway, number(169, 254, 1, 1), number(10, 0, 0, 1)}) {
            EXPECT_EQ(judge({.protocol = protocol, .to = to}), Verdict::kPass) << std::to_string(protocol) << " " << to;
        }
    }
}

TEST_F(FrameFilterTest, KeepsTheHostsLoopbackToItself) {
    for (const std::uint8_t protocol : {kTcp, kUdp, kIcmp}) {
        for (const std::uint32_t to :
             {number(127, 0, 0, 1), number(127, 255, 255, 255), number(127, 0, 0, 53), number(127, 1, 2, 3)}) {
            EXPECT_EQ(judge({.protocol = protocol, .to = to}), Verdict::kHostsOwn) << std::to_string(protocol);
        }
    }
}

TEST_F(FrameFilterTest, KeepsNobodysAddressesFromBeingTheHosts) {
    for (const std::uint8_t protocol : {kTcp, kUdp, kIcmp}) {
        for (const std::uint32_t to : {0U, number(0, 0, 0, 1), number(0, 255, 255, 255)}) {
            EXPECT_EQ(judge({.protocol = protocol, .to = to}), Verdict::kHostsOwn) << std::to_string(protocol);
        }
    }
}

TEST_F(FrameFilterTest, KeepsTheHostsOwnAddressesToIt) {
    for (const std::uint8_t protocol : {kTcp, kUdp, kIcmp, std::uint8_t{132}, std::uint8_t{41}}) {
        EXPECT_EQ(judge({.protocol = protocol, .to = kHost}), Verdict::kHostsOwn) << std::to_string(protocol);
    }
}

TEST_F(FrameFilterTest, OptionsDoNotHideWhereAPacketGoes) {
    for (unsigned words = 0; words <= 10; ++words) {
        EXPECT_EQ(judge({.to = number(127, 0, 0, 1), .options = words}), Verdict::kHostsOwn);
        EXPECT_EQ(judge({.to = kHost, .options = words}), Verdict::kHostsOwn);
        EXPECT_EQ(judge({.to = kElsewhere, .options = words}), Verdict::kPass);
        EXPECT_EQ(judge({.protocol = kUdp, .to = kNameServer, .to_port = 53, .options = words}), Verdict::kPass);
    }
}

TEST_F(FrameFilterTest, FragmentsGoNowhere) {
    for (const unsigned fragment : {0x2000U, 0x2001U, 0x0001U, 0x1fffU, 0x6000U}) {
        EXPECT_EQ(judge({.protocol = kUdp, .to = number(127, 0, 0, 1), .fragment = fragment}), Verdict::kNotServed);
        EXPECT_EQ(judge({.protocol = kUdp, .to = kBroadcast, .to_port = 67, .fragment = fragment}),
                  Verdict::kNotServed);
    }
    EXPECT_EQ(judge({.to = kElsewhere, .fragment = 0x4000}), Verdict::kPass) << "may not be cut, and is not";
}

TEST_F(FrameFilterTest, TagsAndOtherProtocolsGoNowhere) {
    const Bytes inside = ip({.to = number(127, 0, 0, 1)});
    Bytes tagged{0, 1, 8, 0};
    tagged.insert(tagged.end(), inside.begin(), inside.end());
    Bytes twice{0, 1, 0x81, 0};
    twice.insert(twice.end(), tagged.begin(), tagged.end());
    EXPECT_EQ(judge_frame(ethernet(0x8100, tagged)), Verdict::kNotServed);
    EXPECT_EQ(judge_frame(ethernet(0x88a8, twice)), Verdict::kNotServed);
    EXPECT_EQ(judge_frame(ethernet(0x9100, twice)), Verdict::kNotServed);
    Bytes snap{0xaa, 0xaa, 3, 0, 0, 0, 8, 0};
    snap.insert(snap.end(), inside.begin(), inside.end());
    EXPECT_EQ(judge_frame(ethernet(static_cast<unsigned>(snap.size()), snap)), Verdict::kNotServed) << "LLC and SNAP";
    EXPECT_EQ(judge_frame(ethernet(0x8847, tagged)), Verdict::kNotServed) << "MPLS";
}

TEST_F(FrameFilterTest, Ipv6GoesNowhereWhateverItsHeaders) {
    for (const unsigned next : {6U, 17U, 58U, 0U, 43U, 44U, 60U}) { // TCP, UDP, ICMPv6, and extension headers
        Bytes packet{0x60, 0, 0, 0, 0, 40, static_cast<std::uint8_t>(next), 64};
        packet.resize(80);
        packet[39] = 1; // ::1
        EXPECT_EQ(judge_frame(ethernet(0x86dd, packet)), Verdict::kNotServed);
        packet[34] = packet[35] = 0xff; // ::ffff:127.0.0.1
        packet[36] = 127;
        EXPECT_EQ(judge_frame(ethernet(0x86dd, packet)), Verdict::kNotServed);
        EXPECT_EQ(judge_frame(ethernet(0x0800, packet)), Verdict::kMalformed) << "version 6 where IPv4 is announced";
    }
}

TEST_F(FrameFilterTest, EveryTruncationIsDroppedUntilTheHeadersAreWhole) {
    const Bytes whole = frame_of({.to = kElsewhere, .options = 3});
    for (std::size_t bytes = 0; bytes < whole.size(); ++bytes) {
        EXPECT_NE(judge_frame(Bytes(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(bytes))), Verdict::kPass)
            << bytes;
    }
    EXPECT_EQ(judge_frame(whole), Verdict::kPass);
    const Bytes arp =
        ethernet(0x0806, {0, 1, 8, 0, 6, 4, 0, 1, 2, 2, 2, 2, 2, 2, 10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2});
    for (std::size_t bytes = 0; bytes < arp.size(); ++bytes) {
        EXPECT_NE(judge_frame(Bytes(arp.begin(), arp.begin() + static_cast<std::ptrdiff_t>(bytes))), Verdict::kPass)
            << bytes;
    }
    EXPECT_EQ(judge_frame(arp), Verdict::kPass);
}

TEST_F(FrameFilterTest, LengthsThatContradictThemselvesAreMalformed) {
    Bytes frame = frame_of({.to = kElsewhere});
    for (const unsigned words : {0U, 4U, 15U}) { // too short for a header, longer than the packet
        frame[14] = static_cast<std::uint8_t>(0x40 | words);
        EXPECT_EQ(judge_frame(frame), Verdict::kMalformed) << words;
    }
    frame = frame_of({.to = kElsewhere});
    for (const unsigned bytes : {0U, 19U, 20U, 39U, 41U, 65535U}) {
        frame[16] = static_cast<std::uint8_t>(bytes >> 8);
        frame[17] = static_cast<std::uint8_t>(bytes);
        EXPECT_EQ(judge_frame(frame), Verdict::kMalformed) << bytes;
    }
}

TEST_F(FrameFilterTest, SourcesThatNoGuestHasAreDropped) {
    for (const std::uint32_t from : {0U, number(0, 1, 2, 3), number(127, 0, 0, 1), number(224, 0, 0, 1), kBroadcast}) {
        EXPECT_EQ(judge({.from = from, .to = kElsewhere}), Verdict::kBadSource) << from;
        EXPECT_EQ(judge({.protocol = kUdp, .from = from, .to = kNameServer, .to_port = 53}), Verdict::kBadSource)
            << from;
    }
}

TEST_F(FrameFilterTest, DhcpAndDnsWork) {
    EXPECT_EQ(judge({.protocol = kUdp, .from = 0, .to = kBroadcast, .from_port = 68, .to_port = 67}), Verdict::kPass);
    EXPECT_EQ(judge({.protocol = kUdp, .to = kGateway, .from_port = 68, .to_port = 67}), Verdict::kPass);
    EXPECT_EQ(judge({.protocol = kUdp, .to = kNameServer, .to_port = 53}), Verdict::kPass);
    // No other broadcast passes, and DHCP to the host itself does not pass.
    EXPECT_EQ(judge({.protocol = kUdp, .to = kBroadcast, .to_port = 68}), Verdict::kGroup);
    EXPECT_EQ(judge({.protocol = kTcp, .to = kBroadcast, .to_port = 67}), Verdict::kGroup);
    EXPECT_EQ(judge({.protocol = kUdp, .to = number(127, 0, 0, 1), .to_port = 67}), Verdict::kHostsOwn);
    EXPECT_EQ(judge({.protocol = kUdp, .to = number(127, 0, 0, 53), .to_port = 53}), Verdict::kHostsOwn);
    EXPECT_EQ(judge({.protocol = kUdp, .to = kHost, .to_port = 67}), Verdict::kHostsOwn);
}

TEST_F(FrameFilterTest, GatewayAndNameServerThatAreTheHostsOwnTooServeOnlyThat) {
    // Like a host that is itself a guest of the same kind.
    const FrameFilter filter({kGateway, kNameServer}, [](std::uint32_t to) { return to >> 8 == kGuest >> 8; });
    const auto judge_here = [&](const Packet& packet) {
        const Bytes frame = frame_of(packet);
        return filter.to_host(std::as_bytes(std::span(frame)), frame.size());
    };
    EXPECT_EQ(judge_here({.protocol = kUdp, .to = kNameServer, .to_port = 53}), Verdict::kPass);
    EXPECT_EQ(judge_here({.protocol = kUdp, .to = kGateway, .to_port = 67}), Verdict::kPass);
    EXPECT_EQ(judge_here({.to = kElsewhere}), Verdict::kPass) << "from an address that is the host's, too";
    EXPECT_EQ(judge_here({.protocol = kTcp, .to = kNameServer, .to_port = 53}), Verdict::kHostsOwn);
    EXPECT_EQ(judge_here({.protocol = kUdp, .to = kNameServer, .to_port = 54}), Verdict::kHostsOwn);
    EXPECT_EQ(judge_here({.protocol = kTcp, .to = kGateway, .to_port = 22}), Verdict::kHostsOwn);
    EXPECT_EQ(judge_here({.protocol = kTcp, .to = kGuest, .to_port = 22}), Verdict::kHostsOwn);
}

TEST_F(FrameFilterTest, GroupsGoNowhere) {
    for (const std::uint32_t to : {number(224, 0, 0, 251), number(239, 255, 255, 250), number(240, 0, 0, 1)}) {
        EXPECT_EQ(judge({.protocol = kUdp, .to = to}), Verdict::kGroup);
    }
}

TEST_F(FrameFilterTest, ArpClaimsNothingOfTheHosts) {
    const auto arp = [](std::uint32_t sender, std::uint32_t target, unsigned operation = 1) {
        Bytes bytes{0, 1, 8, 0, 6, 4};
        put16(bytes, operation);
        bytes.insert(bytes.end(), 6, 2);
        put32(bytes, sender);
        bytes.insert(bytes.end(), 6, 0);
        put32(bytes, target);
        return ethernet(0x0806, bytes);
    };
    EXPECT_EQ(judge_frame(arp(kGuest, kGateway)), Verdict::kPass);
    EXPECT_EQ(judge_frame(arp(0, kGuest)), Verdict::kPass) << "a probe (RFC 5227)";
    EXPECT_EQ(judge_frame(arp(kGuest, kGuest, 2)), Verdict::kPass) << "an announcement";
    EXPECT_EQ(judge_frame(arp(number(127, 0, 0, 1), kGateway)), Verdict::kBadSource);
    EXPECT_EQ(judge_frame(arp(kGuest, number(127, 0, 0, 1))), Verdict::kHostsOwn);
    EXPECT_EQ(judge_frame(arp(kGuest, 0)), Verdict::kHostsOwn);
    EXPECT_EQ(judge_frame(arp(kGuest, number(224, 0, 0, 1))), Verdict::kGroup);
    EXPECT_EQ(judge_frame(arp(kGuest, kGateway, 3)), Verdict::kNotServed) << "reverse ARP";
}

TEST_F(FrameFilterTest, AnswersToTheHostGoThrough) {
    const Packet answer{.to = kHost, .from_port = 80, .to_port = 50000, .flags = kSyn | kAck};
    EXPECT_EQ(judge(answer), Verdict::kHostsOwn) << "nobody has asked";
    to_guest({.from = kHost, .to = kGuest, .from_port = 50000, .to_port = 80});
    EXPECT_EQ(judge(answer), Verdict::kPass);
    EXPECT_EQ(judge({.to = kHost, .from_port = 80, .to_port = 50000, .flags = kAck}), Verdict::kPass);
    EXPECT_EQ(judge({.to = kHost, .from_port = 80, .to_port = 50000, .flags = kSyn}), Verdict::kHostsOwn)
        << "the guest opens one of its own";
    EXPECT_EQ(judge({.to = kHost, .from_port = 80, .to_port = 50001, .flags = kAck}), Verdict::kHostsOwn);
    EXPECT_EQ(judge({.to = kHost, .from_port = 81, .to_port = 50000, .flags = kAck}), Verdict::kHostsOwn);
    EXPECT_EQ(judge({.protocol = kUdp, .to = kHost, .from_port = 80, .to_port = 50000}), Verdict::kHostsOwn);
}

TEST_F(FrameFilterTest, ADatagramIsAnsweredForAWhile) {
    to_guest({.protocol = kUdp, .from = kHost, .to = kGuest, .from_port = 5000, .to_port = 53});
    const Packet answer{.protocol = kUdp, .to = kHost, .from_port = 53, .to_port = 5000};
    now_ += FrameFilter::kAnswerTime;
    EXPECT_EQ(judge(answer), Verdict::kPass);
    now_ += std::chrono::seconds{1};
    EXPECT_EQ(judge(answer), Verdict::kHostsOwn);
    to_guest({.protocol = kUdp, .from = kHost, .to = kGuest, .from_port = 5000, .to_port = 53});
    EXPECT_EQ(judge(answer), Verdict::kPass);
}

TEST_F(FrameFilterTest, RemembersNoMoreConversationsThanItSays) {
    for (std::size_t i = 0; i <= FrameFilter::kMostAnswers; ++i) {
        to_guest({.from = kHost, .to = kGuest, .from_port = static_cast<std::uint16_t>(10000 + i), .to_port = 80});
    }
    const auto answer = [this](std::size_t i) {
        return judge({.to = kHost, .from_port = 80, .to_port = static_cast<std::uint16_t>(10000 + i), .flags = kAck});
    };
    EXPECT_EQ(answer(0), Verdict::kHostsOwn) << "the oldest one";
    EXPECT_EQ(answer(1), Verdict::kPass);
    EXPECT_EQ(answer(FrameFilter::kMostAnswers), Verdict::kPass);
}

TEST_F(FrameFilterTest, SaysWhereAFrameWasToGo) {
    const auto text = [](const Bytes& frame) { return FrameFilter::destination(std::as_bytes(std::span(frame))); };
    EXPECT_EQ(text(frame_of({.to = number(127, 0, 0, 1), .to_port = 22, .options = 2})), "TCP port 22 of 127.0.0.1");
    EXPECT_EQ(text(frame_of({.protocol = kUdp, .to = kHost, .to_port = 53})), "UDP port 53 of 192.0.2.7");
    EXPECT_EQ(text(frame_of({.protocol = kIcmp, .to = kHost})), "192.0.2.7 (protocol 1)");
    for (std::size_t bytes = 0; bytes < 60; ++bytes) {
        static_cast<void>(text(ethernet(0x0800, Bytes(bytes, 0xff))));
        static_cast<void>(text(ethernet(0x0806, Bytes(bytes, 0xff))));
    }
}

} // namespace
} // namespace vmm::devices
