// Decides which of a guest's frames may go to a program that turns them into sockets of the host.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <tuple>

namespace vmm::devices {

/// Keeps a guest from reaching the host itself. A program like passt connects wherever a frame says, as the user who
/// runs it. That includes the loopback interface and the host's own addresses, where services trust all clients.
///
/// These frames pass: ARP and whole IPv4 packets to other machines, DHCP with the gateway, DNS with the name server,
/// and answers to packets from the host's addresses. All others are dropped: other protocols (IPv6, VLAN tags, LLC),
/// fragments, and packets to a group.
///
/// The filter gets a copy of a frame's head and keeps no reference to it. Addresses are numbers, with the first byte as
/// the highest.
///
/// Threads: one.
class FrameFilter {
  public:
    using Clock = std::chrono::steady_clock;
    using Now = std::function<Clock::time_point()>;
    /// Returns true if the host itself receives packets to an address or a group. It need not handle loopback
    /// addresses.
    using IsHosts = std::function<bool(std::uint32_t address)>;

    /// The addresses at which the program on the other side answers itself.
    struct Network {
        std::uint32_t gateway = 0;     ///< DHCP, UDP port 67
        std::uint32_t name_server = 0; ///< DNS, UDP port 53
    };

    enum class Verdict {
        kPass,
        kMalformed, ///< not a frame, or not a packet
        kNotServed, ///< a protocol that the other side does not support
        kBadSource, ///< from an address that no guest has
        kGroup,     ///< to a multicast, broadcast or reserved address
        kHostsOwn,  ///< to the host itself
    };

    /// The number of bytes of each frame that the filter reads: Ethernet, IPv4 with all its options, and TCP.
    static constexpr std::size_t kHeadBytes = 14 + 60 + 20;
    /// The number of remembered conversations that began at the host's own addresses.
    static constexpr std::size_t kMostAnswers = 4096;
    /// How long the guest may take to answer a datagram.
    static constexpr std::chrono::seconds kAnswerTime{180};

    FrameFilter(const Network& network, IsHosts is_hosts, Now now = &Clock::now);

    /// Judges a frame of the guest. `head` is its first kHeadBytes, or all of its `frame_bytes` if it is shorter.
    [[nodiscard]] Verdict to_host(std::span<const std::byte> head, std::size_t frame_bytes) const;
    /// Records that `frame` is on its way to the guest, which may answer it.
    void to_guest(std::span<const std::byte> frame);

    /// The destination of a frame, as text for people: "TCP port 22 of 127.0.0.1".
    [[nodiscard]] static std::string destination(std::span<const std::byte> head);

  private:
    /// (protocol, host's address, host's port, guest's port)
    using Conversation = std::tuple<std::uint8_t, std::uint32_t, std::uint16_t, std::uint16_t>;

    [[nodiscard]] Verdict judge_packet(std::span<const std::byte> head, std::size_t frame_bytes) const;
    [[nodiscard]] bool is_answer(const Conversation& conversation, bool opens) const;

    const Network network_;
    const IsHosts is_hosts_;
    const Now now_;
    std::map<Conversation, Clock::time_point> conversations_; ///< when the last frame of each went to the guest
    std::deque<Conversation> oldest_first_;
};

} // namespace vmm::devices
