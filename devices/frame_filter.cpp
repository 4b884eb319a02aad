#include "devices/frame_filter.hpp"

#include <algorithm>
#include <optional>
#include <utility>

namespace vmm::devices {

namespace {

using Bytes = std::span<const std::byte>;
using Verdict = FrameFilter::Verdict;

constexpr std::size_t kEthernetBytes = 14;
constexpr std::uint16_t kTypeIpv4 = 0x0800;
constexpr std::uint16_t kTypeArp = 0x0806;
constexpr std::size_t kArpBytes = 28;
constexpr std::uint8_t kTcp = 6;
constexpr std::uint8_t kUdp = 17;
constexpr std::uint16_t kDhcpServerPort = 67;
constexpr std::uint16_t kDnsPort = 53;
constexpr std::uint32_t kBroadcast = 0xffffffff;

// The callers have checked that the bytes exist.
std::uint8_t byte_at(Bytes bytes, std::size_t at) noexcept {
    return std::to_integer<std::uint8_t>(bytes[at]);
}
std::uint16_t get16(Bytes bytes, std::size_t at) noexcept {
    return static_cast<std::uint16_t>(byte_at(bytes, at) << 8 | byte_at(bytes, at + 1));
}
std::uint32_t get32(Bytes bytes, std::size_t at) noexcept {
    return static_cast<std::uint32_t>(get16(bytes, at)) << 16 | get16(bytes, at + 2);
}

bool is_zero_net(std::uint32_t address) noexcept {
    return address >> 24 ==
           0; // "this network" (RFC 1122, 3.2.1.3): a connection to it is one to the loopback interface
}
bool is_loopback(std::uint32_t address) noexcept {
    return address >> 24 == 127;
}
/// Multicast, reserved and broadcast addresses.
bool is_group(std::uint32_t address) noexcept {
    return address >> 28 >= 14;
}

/// A whole IPv4 packet that is not a fragment.
struct Packet {
    std::uint8_t protocol = 0;
    std::uint32_t source = 0;
    std::uint32_t destination = 0;
    std::size_t payload = 0; ///< where it begins in the frame
    bool has_ports = false;  ///< TCP or UDP, with its header
    std::uint16_t source_port = 0;
    std::uint16_t destination_port = 0;
    bool opens = false; ///< TCP: a SYN without ACK
};

std::pair<Verdict, Packet> parse(Bytes head, std::size_t frame_bytes) noexcept {
    constexpr std::size_t kIp = kEthernetBytes;
    constexpr std::size_t kLeastIpBytes = 20;
    Packet packet;
    if (frame_bytes < kIp + kLeastIpBytes) {
        return {Verdict::kMalformed, packet};
    }
    const std::size_t header_bytes = (byte_at(head, kIp) & 0xfU) * 4U;
    const std::size_t packet_bytes = get16(head, kIp + 2);
    if (byte_at(head, kIp) >> 4 != 4 || header_bytes < kLeastIpBytes || packet_bytes < header_bytes ||
        packet_bytes > frame_bytes - kIp) {
        return {Verdict::kMalformed, packet};
    }
    // The packet is a fragment. The other side does not reassemble fragments, and may take one for a whole packet.
    if ((get16(head, kIp + 6) & 0x3fff) != 0) {
        return {Verdict::kNotServed, packet};
    }
    packet.protocol = byte_at(head, kIp + 9);
    packet.source = get32(head, kIp + 12);
    packet.destination = get32(head, kIp + 16);
    packet.payload = kIp + header_bytes;
    const std::size_t needed = packet.protocol == kTcp ? 20 : packet.protocol == kUdp ? 8 : 0;
    if (packet_bytes - header_bytes < needed) {
        return {Verdict::kMalformed, packet};
    }
    packet.has_ports = needed != 0;
    if (packet.has_ports) {
        packet.source_port = get16(head, packet.payload);
        packet.destination_port = get16(head, packet.payload + 2);
    }
    packet.opens = packet.protocol == kTcp && (byte_at(head, packet.payload + 13) & 0x12) == 0x02;
    return {Verdict::kPass, packet};
}

Verdict judge_arp(Bytes head, std::size_t frame_bytes) noexcept {
    if (frame_bytes < kEthernetBytes + kArpBytes) {
        return Verdict::kMalformed;
    }
    // It must be for Ethernet and IPv4, with their address lengths, and be a request or an answer (RFC 826).
    const std::uint16_t operation = get16(head, kEthernetBytes + 6);
    if (get16(head, kEthernetBytes) != 1 || get16(head, kEthernetBytes + 2) != kTypeIpv4 ||
        get16(head, kEthernetBytes + 4) != 0x0604 || operation < 1 || operation > 2) {
        return Verdict::kNotServed;
    }
    const std::uint32_t sender = get32(head, kEthernetBytes + 14);
    const std::uint32_t target = get32(head, kEthernetBytes + 24);
    if (is_loopback(sender) || is_group(sender) || (is_zero_net(sender) && sender != 0)) {
        return Verdict::kBadSource;
    }
    return is_loopback(target) || is_zero_net(target) ? Verdict::kHostsOwn
           : is_group(target)                         ? Verdict::kGroup
                                                      : Verdict::kPass;
}

std::string to_text(std::uint32_t address) {
    std::string text;
    for (int shift = 24; shift >= 0; shift -= 8) {
        text += std::to_string(address >> shift & 0xff) + (shift != 0 ? "." : "");
    }
    return text;
}

} // namespace

FrameFilter::FrameFilter(const Network& network, IsHosts is_hosts, Now now)
    : network_(network), is_hosts_(std::move(is_hosts)), now_(std::move(now)) {}

FrameFilter::Verdict FrameFilter::to_host(std::span<const std::byte> head, std::size_t frame_bytes) const {
    if (frame_bytes < kEthernetBytes || head.size() < std::min(frame_bytes, kHeadBytes)) {
        return Verdict::kMalformed;
    }
    switch (get16(head, kEthernetBytes - 2)) {
    case kTypeArp:
        return judge_arp(head, frame_bytes);
    case kTypeIpv4:
        return judge_packet(head, frame_bytes);
    default:
        return Verdict::kNotServed;
    }
}

FrameFilter::Verdict FrameFilter::judge_packet(std::span<const std::byte> head, std::size_t frame_bytes) const {
    const auto [verdict, packet] = parse(head, frame_bytes);
    if (verdict != Verdict::kPass) {
        return verdict;
    }
    if (is_loopback(packet.source) || is_group(packet.source)) {
        return Verdict::kBadSource;
    }
    const std::uint32_t to = packet.destination;
    const bool is_dhcp = packet.protocol == kUdp && packet.destination_port == kDhcpServerPort &&
                         (to == kBroadcast || to == network_.gateway);
    const bool is_dns = packet.protocol == kUdp && packet.destination_port == kDnsPort && to == network_.name_server;
    if (is_dhcp) {
        return Verdict::kPass; // This is the only packet that a guest sends without its own address.
    }
    if (is_zero_net(packet.source)) {
        return Verdict::kBadSource;
    }
    if (is_dns) {
        return Verdict::kPass;
    }
    if (is_loopback(to) || is_zero_net(to)) {
        return Verdict::kHostsOwn;
    }
    if (is_group(to)) {
        return Verdict::kGroup; // Members of a multicast group on the host receive what the host sends to the group.
    }
    if (!is_hosts_(to)) {
        return Verdict::kPass;
    }
    const Conversation conversation{packet.protocol, to, packet.destination_port, packet.source_port};
    return packet.has_ports && is_answer(conversation, packet.opens) ? Verdict::kPass : Verdict::kHostsOwn;
}

bool FrameFilter::is_answer(const Conversation& conversation, bool opens) const {
    const auto found = conversations_.find(conversation);
    if (found == conversations_.end() || opens) {
        return false;
    }
    // A TCP segment without SYN opens nothing, however late it comes. A datagram would reach the present user of the
    // port.
    return std::get<0>(conversation) == kTcp || now_() - found->second <= kAnswerTime;
}

void FrameFilter::to_guest(std::span<const std::byte> frame) {
    const auto head = frame.first(std::min(frame.size(), kHeadBytes));
    if (head.size() < kEthernetBytes || get16(head, kEthernetBytes - 2) != kTypeIpv4) {
        return;
    }
    const auto [verdict, packet] = parse(head, frame.size());
    if (verdict != Verdict::kPass || !packet.has_ports || !is_hosts_(packet.source)) {
        return;
    }
    const Conversation conversation{packet.protocol, packet.source, packet.source_port, packet.destination_port};
    if (conversations_.insert_or_assign(conversation, now_()).second) {
        oldest_first_.push_back(conversation);
        if (oldest_first_.size() > kMostAnswers) {
            conversations_.erase(oldest_first_.front());
            oldest_first_.pop_front();
        }
    }
}

std::string FrameFilter::destination(std::span<const std::byte> head) {
    if (head.size() < kEthernetBytes + 20) {
        return "the host";
    }
    if (get16(head, kEthernetBytes - 2) != kTypeIpv4) {
        return head.size() < kEthernetBytes + kArpBytes ? "the host"
                                                        : to_text(get32(head, kEthernetBytes + 24)) + " (ARP)";
    }
    const std::string address = to_text(get32(head, kEthernetBytes + 16));
    const std::uint8_t protocol = byte_at(head, kEthernetBytes + 9);
    const std::size_t payload = kEthernetBytes + (byte_at(head, kEthernetBytes) & 0xfU) * 4U;
    if ((protocol == kTcp || protocol == kUdp) && payload + 4 <= head.size()) {
        return (protocol == kTcp ? "TCP port " : "UDP port ") + std::to_string(get16(head, payload + 2)) + " of " +
               address;
    }
    return address + " (protocol " + std::to_string(protocol) + ")";
}

} // namespace vmm::devices
