// Networking in user mode: how passt is started, and a guest's ARP, DHCP and TCP through it, from virtio queues to a
// socket on the loopback interface.

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "devices/frame_stream.hpp"
#include "devices/virtio/net.hpp"
#include "kvm/host/error.hpp"
#include "support/devices_virtio_driver.hpp"
#include "support/host_errors.hpp"
#include "support/host_network_namespace.hpp"
#include "vmm/network/user_network.hpp"

namespace vmm {
namespace {

using devices::testing::VirtioRig;
using testing::mentions;
using Bytes = std::vector<std::uint8_t>;

constexpr std::uint16_t kReceive = 0;
constexpr std::uint16_t kTransmit = 1;
constexpr std::array<std::uint8_t, 6> kGuestMac{0x52, 0x54, 0, 0x12, 0x34, 0x56};

/// A listening socket on the loopback interface, at a port that was free.
class Listener {
  public:
    explicit Listener(std::uint32_t at = INADDR_LOOPBACK) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(at);
        EXPECT_EQ(::bind(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
        EXPECT_EQ(::listen(fd_.get(), 4), 0);
        socklen_t size = sizeof(address);
        EXPECT_EQ(::getsockname(fd_.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
        port_ = ntohs(address.sin_port);
    }
    [[nodiscard]] std::uint16_t port() const noexcept { return port_; }
    [[nodiscard]] int fd() const noexcept { return fd_.get(); }

  private:
    UniqueFd fd_;
    std::uint16_t port_ = 0;
};

TEST(UserNetwork, IsRefusedWherePasstIsNotInstalled) {
    const char* const path = std::getenv("PATH");
    const std::string before = path != nullptr ? path : "";
    ::setenv("PATH", "/nonexistent", 1);
    const std::string error = testing::error_of([] { check_user_network({.user = true}); });
    ::setenv("PATH", before.c_str(), 1);
    EXPECT_TRUE(mentions(error, "install the package passt")) << error;
}

TEST(UserNetwork, KeepsTheHostsLoopbackToItselfUnlessAskedNotTo) {
    const auto has = [](const NetConfig& net, std::string_view word) {
        const auto words = passt_arguments(net, 7, false);
        return std::find(words.begin(), words.end(), word) != words.end();
    };
    EXPECT_TRUE(has({.user = true}, "--no-map-gw"));
    EXPECT_FALSE(has({.user = true, .host_loopback = true}, "--no-map-gw"));
    EXPECT_TRUE(has({.user = true, .forwards = {{false, "127.0.0.1", 8080, 80}}}, "127.0.0.1/8080:80"));
}

class UserNetworkOfPasst : public ::testing::Test {
  protected:
    void SetUp() override {
        try {
            check_user_network({.user = true});
        } catch (const Error& error) {
            GTEST_SKIP() << error.what();
        }
    }
};

TEST_F(UserNetworkOfPasst, IsRefusedAPortThatAnotherProgramHas) {
    const Listener listener;
    const std::string error = testing::error_of([&] {
        check_user_network({.user = true, .forwards = {{false, "127.0.0.1", listener.port(), 80}}});
    });
    EXPECT_TRUE(mentions(error, "TCP port " + std::to_string(listener.port()) + " of 127.0.0.1")) << error;
    EXPECT_TRUE(mentions(error, "another program has it")) << error;
    EXPECT_TRUE(mentions(testing::error_of([] {
                             check_user_network({.user = true, .forwards = {{true, "localhost", 5353, 53}}});
                         }),
                         "no IPv4 address"));
}

// ---- A guest, byte by byte

void put16(Bytes& out, unsigned value) {
    out.push_back(static_cast<std::uint8_t>(value >> 8));
    out.push_back(static_cast<std::uint8_t>(value));
}
void put32(Bytes& out, std::uint32_t value) {
    put16(out, value >> 16);
    put16(out, value & 0xffff);
}
void put(Bytes& out, const Bytes& more) {
    out.insert(out.end(), more.begin(), more.end());
}
unsigned get16(const Bytes& in, std::size_t at) {
    return static_cast<unsigned>(in.at(at)) << 8 | in.at(at + 1);
}
std::uint32_t get32(const Bytes& in, std::size_t at) {
    return get16(in, at) << 16 | get16(in, at + 2);
}
std::uint32_t address_of(const char* text) {
    in_addr address{};
    EXPECT_EQ(::inet_pton(AF_INET, text, &address), 1);
    return ntohl(address.s_addr);
}
unsigned checksum(const Bytes& bytes) { // RFC 1071
    std::uint32_t sum = 0;
    for (std::size_t i = 0; i < bytes.size(); i += 2) {
        sum += static_cast<std::uint32_t>(bytes[i]) << 8 | (i + 1 < bytes.size() ? bytes[i + 1] : 0U);
    }
    while (sum >> 16 != 0) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return ~sum & 0xffff;
}

Bytes ethernet(const Bytes& to, unsigned type, const Bytes& payload) {
    Bytes frame = to;
    frame.insert(frame.end(), kGuestMac.begin(), kGuestMac.end());
    put16(frame, type);
    put(frame, payload);
    return frame;
}

Bytes ipv4(std::uint8_t protocol, std::uint32_t from, std::uint32_t to, const Bytes& payload) {
    Bytes header{0x45, 0};
    put16(header, static_cast<unsigned>(20 + payload.size()));
    put32(header, 0);
    header.push_back(64);
    header.push_back(protocol);
    put16(header, 0);
    put32(header, from);
    put32(header, to);
    const unsigned sum = checksum(header);
    header[10] = static_cast<std::uint8_t>(sum >> 8);
    header[11] = static_cast<std::uint8_t>(sum);
    put(header, payload);
    return header;
}

Bytes arp_request(std::uint32_t from, std::uint32_t whom) {
    Bytes arp{0, 1, 8, 0, 6, 4, 0, 1};
    arp.insert(arp.end(), kGuestMac.begin(), kGuestMac.end());
    put32(arp, from);
    arp.insert(arp.end(), 6, 0);
    put32(arp, whom);
    return ethernet(Bytes(6, 0xff), 0x0806, arp);
}

Bytes dhcp_discover() { // RFC 2131
    Bytes dhcp{1, 1, 6, 0};
    put32(dhcp, 0x1234);
    dhcp.resize(28);
    dhcp.insert(dhcp.end(), kGuestMac.begin(), kGuestMac.end());
    dhcp.resize(236);
    put32(dhcp, 0x63825363);
    put(dhcp, {53, 1, 1, 255});
    dhcp.resize(300);
    Bytes udp;
    put16(udp, 68);
    put16(udp, 67);
    put16(udp, static_cast<unsigned>(8 + dhcp.size()));
    put16(udp, 0);
    put(udp, dhcp);
    return ethernet(Bytes(6, 0xff), 0x0800, ipv4(17, 0, 0xffffffff, udp));
}

struct Segment {
    std::uint16_t from = 40000;
    std::uint16_t to = 0;
    std::uint32_t sequence = 0;
    std::uint32_t acknowledged = 0;
    std::uint8_t flags = 0;
    std::string data{};
    const char* address = user_network::kGateway;
};
constexpr std::uint8_t kSyn = 2;
constexpr std::uint8_t kPush = 8;
constexpr std::uint8_t kAck = 16;

Bytes tcp(const Bytes& gateway_mac, const Segment& segment) {
    const std::uint32_t from = address_of(user_network::kGuestAddress);
    const std::uint32_t to = address_of(segment.address);
    Bytes bytes;
    put16(bytes, segment.from);
    put16(bytes, segment.to);
    put32(bytes, segment.sequence);
    put32(bytes, segment.acknowledged);
    bytes.push_back(5 << 4);
    bytes.push_back(segment.flags);
    put16(bytes, 64000);
    put32(bytes, 0);
    bytes.insert(bytes.end(), segment.data.begin(), segment.data.end());
    Bytes pseudo;
    put32(pseudo, from);
    put32(pseudo, to);
    put16(pseudo, 6);
    put16(pseudo, static_cast<unsigned>(bytes.size()));
    put(pseudo, bytes);
    const unsigned sum = checksum(pseudo);
    bytes[16] = static_cast<std::uint8_t>(sum >> 8);
    bytes[17] = static_cast<std::uint8_t>(sum);
    return ethernet(gateway_mac, 0x0800, ipv4(6, from, to, bytes));
}

/// The machine's side of `--net user`, with a driver that moves whole frames.
class Guest {
  public:
    explicit Guest(const NetConfig& config)
        : network_(config),
          net_("net0",
               std::make_unique<devices::FrameStream>(network_.take_socket(), make_frame_filter(config),
                                                      [this](const std::string& to) { kept_.push_back(to); }),
               {2, 0, 0, 0, 0, 1}, [this] { last_words_ = network_.last_words(); }),
          rig_(net_) {
        EXPECT_TRUE(rig_.start());
        for (unsigned i = 0; i < 16; ++i) {
            offer(rig_.allocate(kBufferBytes));
        }
        rig_.ring(kReceive);
        out_ = rig_.allocate(kBufferBytes);
    }

    void send(const Bytes& frame) {
        ASSERT_TRUE(rig_.memory().copy_in(devices::testing::operator+(out_, kHeader), std::as_bytes(std::span(frame))));
        rig_.queue(kTransmit).add({{out_, static_cast<std::uint32_t>(kHeader + frame.size())}});
        rig_.ring(kTransmit);
        ASSERT_TRUE(rig_.wait_for_used(kTransmit));
    }
    /// The next frame for which `wanted` is true; nothing if none comes.
    std::optional<Bytes> wait_for(const std::function<bool(const Bytes&)>& wanted) {
        std::optional<Bytes> found;
        rig_.pump_until([&] {
            while (const auto used = rig_.queue(kReceive).take_used()) {
                const GuestAddress at = buffers_[used->id];
                Bytes frame(used->length - kHeader);
                EXPECT_TRUE(rig_.memory().copy_out(devices::testing::operator+(at, kHeader),
                                                   std::as_writable_bytes(std::span(frame))));
                offer(at);
                rig_.ring(kReceive);
                if (!found && wanted(frame)) {
                    found = frame;
                }
            }
            return found.has_value() || !last_words_.empty();
        });
        EXPECT_TRUE(last_words_.empty()) << "passt has ended: " << last_words_;
        return found;
    }
    /// The next TCP segment for the guest with these flags.
    std::optional<Bytes> wait_for_segment(std::uint8_t flags) {
        return wait_for([flags](const Bytes& frame) {
            return get16(frame, 12) == 0x0800 && frame.at(23) == 6 && (frame.at(47) & flags) == flags;
        });
    }

    [[nodiscard]] VirtioRig& rig() noexcept { return rig_; }
    [[nodiscard]] pid_t passt() const noexcept { return network_.pid(); }
    /// The destinations of the frames that were kept from the host.
    [[nodiscard]] const std::vector<std::string>& kept() const noexcept { return kept_; }

  private:
    static constexpr std::uint32_t kHeader = devices::FrameLink::kHeaderBytes;
    static constexpr std::uint32_t kBufferBytes = 2048;

    void offer(GuestAddress at) {
        buffers_[rig_.queue(kReceive).add({{at, kBufferBytes, devices::testing::kWritable}})] = at;
    }

    UserNetwork network_;
    std::string last_words_;
    std::vector<std::string> kept_;
    devices::virtio::Net net_;
    VirtioRig rig_;
    std::array<GuestAddress, 256> buffers_{}; ///< by head
    GuestAddress out_{};
};

Bytes mac_of_gateway(Guest& guest) {
    const std::uint32_t gateway = address_of(user_network::kGateway);
    guest.send(arp_request(address_of(user_network::kGuestAddress), gateway));
    const auto answer = guest.wait_for([&](const Bytes& frame) {
        return get16(frame, 12) == 0x0806 && get16(frame, 20) == 2 && get32(frame, 28) == gateway;
    });
    EXPECT_TRUE(answer);
    return answer ? Bytes(answer->begin() + 22, answer->begin() + 28) : Bytes(6);
}

TEST_F(UserNetworkOfPasst, GivesTheGuestItsAddress) {
    Guest guest({.user = true});
    guest.send(dhcp_discover());
    const auto offer =
        guest.wait_for([](const Bytes& frame) { return get16(frame, 12) == 0x0800 && get16(frame, 34) == 67; });
    ASSERT_TRUE(offer);
    EXPECT_EQ(get32(*offer, 14 + 28 + 16), address_of(user_network::kGuestAddress));
    // Its router is option 3.
    Bytes router{3, 4};
    put32(router, address_of(user_network::kGateway));
    EXPECT_NE(std::search(offer->begin(), offer->end(), router.begin(), router.end()), offer->end());
}

TEST_F(UserNetworkOfPasst, ConnectsTheGuestToASocketAndHasItsLinkDownWhenPasstEnds) {
    const Listener listener;
    Guest guest({.user = true, .host_loopback = true});
    const Bytes gateway = mac_of_gateway(guest);
    guest.send(tcp(gateway, {.to = listener.port(), .sequence = 1000, .flags = kSyn}));
    const auto accepted = guest.wait_for_segment(kSyn | kAck);
    ASSERT_TRUE(accepted);
    const std::uint32_t theirs = get32(*accepted, 38) + 1;
    guest.send(tcp(gateway, {.to = listener.port(), .sequence = 1001, .acknowledged = theirs, .flags = kAck}));
    guest.send(tcp(gateway, {.to = listener.port(),
                             .sequence = 1001,
                             .acknowledged = theirs,
                             .flags = kAck | kPush,
                             .data = "from the guest"}));
    const UniqueFd server(::accept4(listener.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    ASSERT_TRUE(server);
    std::array<char, 100> heard{};
    ssize_t count = -1;
    ASSERT_TRUE(guest.rig().pump_until([&] { return (count = ::read(server.get(), heard.data(), heard.size())) > 0; }));
    EXPECT_EQ(std::string_view(heard.data(), static_cast<std::size_t>(count)), "from the guest");
    ASSERT_EQ(::write(server.get(), "to the guest", 12), 12);
    const auto answer = guest.wait_for([](const Bytes& frame) {
        constexpr std::string_view kText = "to the guest";
        return std::search(frame.begin(), frame.end(), kText.begin(), kText.end()) != frame.end();
    });
    EXPECT_TRUE(answer);

    EXPECT_EQ(guest.rig().driver().read_config<std::uint16_t>(6), 1U);
    ASSERT_EQ(::kill(guest.passt(), SIGKILL), 0);
    EXPECT_TRUE(guest.rig().pump_until([&] { return guest.rig().driver().read_config<std::uint16_t>(6) == 0; }));
    EXPECT_TRUE(guest.rig().is_alive());
    guest.send(arp_request(1, 2));
}

/// Returns when passt is done with all frames sent before. passt answers ARP at once, and handles the rest of the
/// frames that it has read after that. So the second answer comes when the frames read with the first one are done.
void wait_for_passt(Guest& guest) {
    mac_of_gateway(guest);
    mac_of_gateway(guest);
}

bool has_connection(const Listener& listener) {
    pollfd ready{listener.fd(), POLLIN, 0};
    return ::poll(&ready, 1, 0) == 1;
}

TEST_F(UserNetworkOfPasst, KeepsTheGuestFromTheHostsLoopback) {
    const Listener listener;
    Guest guest({.user = true});
    guest.send(tcp(mac_of_gateway(guest), {.to = listener.port(), .sequence = 1000, .flags = kSyn}));
    wait_for_passt(guest);
    EXPECT_FALSE(has_connection(listener));
}

constexpr const char* kHostsAddress = "198.51.100.7";

/// On a host that has kHostsAddress.
class UserNetworkOnAHost : public UserNetworkOfPasst {
  protected:
    void SetUp() override {
        UserNetworkOfPasst::SetUp();
        if (!host_.why().empty()) {
            GTEST_SKIP() << host_.why();
        }
        ASSERT_TRUE(host_.add_address(1, kHostsAddress));
    }
    testing::NetworkNamespace host_;
};

TEST_F(UserNetworkOnAHost, KeepsTheGuestFromTheHostWhateverAddressItTries) {
    const Listener listener(INADDR_ANY);
    Guest guest({.user = true});
    const Bytes gateway = mac_of_gateway(guest);
    for (const char* const address :
         {"127.0.0.1", "127.0.0.53", "0.0.0.0", "0.0.0.1", kHostsAddress, "198.51.100.200"}) {
        guest.send(tcp(gateway, {.to = listener.port(), .sequence = 1000, .flags = kSyn, .address = address}));
        wait_for_passt(guest);
        EXPECT_FALSE(has_connection(listener)) << address;
    }
    EXPECT_EQ(guest.kept().size(), 6U);
    // Also an address that the host gets while the guest runs.
    ASSERT_TRUE(host_.add_address(2, "203.0.113.5"));
    guest.send(tcp(gateway, {.to = listener.port(), .sequence = 1000, .flags = kSyn, .address = "203.0.113.5"}));
    wait_for_passt(guest);
    EXPECT_FALSE(has_connection(listener));
    EXPECT_EQ(guest.kept().back(), "TCP port " + std::to_string(listener.port()) + " of 203.0.113.5");
}

TEST_F(UserNetworkOnAHost, LetsTheGuestReachTheHostWhereThatIsAskedFor) {
    const Listener listener(INADDR_ANY);
    Guest guest({.user = true, .host_loopback = true});
    const Bytes gateway = mac_of_gateway(guest);
    std::uint16_t from = 40000;
    for (const char* const address : {"127.0.0.1", "0.0.0.0", kHostsAddress, user_network::kGateway}) {
        guest.send(
            tcp(gateway, {.from = ++from, .to = listener.port(), .sequence = 1000, .flags = kSyn, .address = address}));
        EXPECT_TRUE(guest.wait_for_segment(kSyn | kAck)) << address;
        const UniqueFd server(::accept4(listener.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
        EXPECT_TRUE(server) << address;
    }
}

TEST_F(UserNetworkOnAHost, KeepsDatagramsFromTheHost) {
    const UniqueFd receiver(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_in any{};
    any.sin_family = AF_INET;
    ASSERT_EQ(::bind(receiver.get(), reinterpret_cast<const sockaddr*>(&any), sizeof(any)), 0);
    socklen_t size = sizeof(any);
    ASSERT_EQ(::getsockname(receiver.get(), reinterpret_cast<sockaddr*>(&any), &size), 0);
    const auto datagram = [&](const char* to) {
        Bytes udp;
        put16(udp, 40001);
        put16(udp, ntohs(any.sin_port));
        put16(udp, 12);
        put16(udp, 0);
        put32(udp, 0x68656c6f);
        return ipv4(17, address_of(user_network::kGuestAddress), address_of(to), udp);
    };
    std::array<char, 16> heard{};
    for (const bool allowed : {false, true}) {
        Guest guest({.user = true, .host_loopback = allowed});
        const Bytes gateway = mac_of_gateway(guest);
        for (const char* const to : {"127.0.0.1", "0.0.0.0", kHostsAddress}) {
            guest.send(ethernet(gateway, 0x0800, datagram(to)));
            wait_for_passt(guest);
            EXPECT_EQ(::recv(receiver.get(), heard.data(), heard.size(), 0) == 4, allowed) << to;
        }
    }
}

TEST_F(UserNetworkOnAHost, AServerInTheGuestAnswersAClientOnTheHostsOwnAddress) {
    std::uint16_t port = 0;
    {
        const Listener free(INADDR_ANY);
        port = free.port();
    }
    Guest guest({.user = true, .forwards = {{false, "0.0.0.0", port, 80}}});
    const Bytes gateway = mac_of_gateway(guest);
    wait_for_passt(guest);
    const UniqueFd client(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(address_of(kHostsAddress));
    ASSERT_EQ(::connect(client.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    const auto asked = guest.wait_for_segment(kSyn);
    ASSERT_TRUE(asked);
    const std::uint32_t from = get32(*asked, 26);
    EXPECT_EQ(from, address_of(kHostsAddress));
    Segment answer{.from = 80,
                   .to = static_cast<std::uint16_t>(get16(*asked, 34)),
                   .sequence = 5000,
                   .acknowledged = get32(*asked, 38) + 1,
                   .flags = kSyn | kAck,
                   .address = kHostsAddress};
    guest.send(tcp(gateway, answer));
    ASSERT_EQ(::write(client.get(), "to the guest", 12), 12);
    EXPECT_TRUE(guest.wait_for([](const Bytes& frame) {
        constexpr std::string_view kText = "to the guest";
        return std::search(frame.begin(), frame.end(), kText.begin(), kText.end()) != frame.end();
    })) << "the guest's answer has not come";
    EXPECT_TRUE(guest.kept().empty()) << guest.kept().front();
}

} // namespace
} // namespace vmm
