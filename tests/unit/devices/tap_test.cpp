// Real tap interfaces, in a network namespace of the test: to whom they are refused, and what happens if one is
// deleted.

#include <gtest/gtest.h>

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "devices/tap.hpp"
#include "devices/virtio/net.hpp"
#include "kvm/host/error.hpp"
#include "kvm/host/unique_fd.hpp"
#include "support/devices_virtio_driver.hpp"
#include "support/host_errors.hpp"

namespace vmm::devices::testing {
namespace {

using virtio::Net;
using vmm::testing::error_of;
using vmm::testing::mentions;

constexpr const char* kName = "vmmtest0";
constexpr uid_t kNobody = 65534;

/// Calls `body` in a network namespace that ends with it. Returns why there is none, or an empty text.
std::string in_own_network(const std::function<void()>& body) {
    std::string reason;
    std::thread thread([&] {
        if (::unshare(CLONE_NEWNET) != 0) {
            reason = "no network namespace can be made: " + errno_reason(errno);
        } else if (::access("/dev/net/tun", R_OK | W_OK) != 0) {
            reason = "/dev/net/tun cannot be opened: " + errno_reason(errno);
        } else {
            body();
        }
    });
    thread.join();
    return reason;
}

/// What `ip link set NAME up` and `ip link delete NAME` do.
void set_up(const std::string& name) {
    const UniqueFd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    ifreq request{};
    name.copy(request.ifr_name, IFNAMSIZ - 1);
    request.ifr_flags = IFF_UP;
    EXPECT_EQ(::ioctl(socket.get(), SIOCSIFFLAGS, &request), 0);
}
/// Sends frames of many UDP flows, as a host's switch would, by a socket of raw frames.
void send_many_flows(const std::string& name) {
    const UniqueFd socket(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0));
    sockaddr_ll to{};
    to.sll_family = AF_PACKET;
    ifreq named{};
    name.copy(named.ifr_name, IFNAMSIZ - 1);
    EXPECT_EQ(::ioctl(socket.get(), SIOCGIFINDEX, &named), 0);
    to.sll_ifindex = named.ifr_ifindex;
    for (std::uint8_t flow = 0; flow < 200; ++flow) {
        std::array<std::uint8_t, 60> frame{0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2, 0x08, 0x00};
        const std::array<std::uint8_t, 28> packet{0x45, 0, 0,  46, 0, 0, 0,    0, 64,   17, 0, 0,  10, 0,
                                                  0,    1, 10, 0,  0, 2, flow, 1, flow, 2,  0, 26, 0,  0};
        std::ranges::copy(packet, frame.begin() + 14);
        EXPECT_EQ(
            ::sendto(socket.get(), frame.data(), frame.size(), 0, reinterpret_cast<const sockaddr*>(&to), sizeof(to)),
            static_cast<ssize_t>(frame.size()));
    }
}
bool erase(const std::string& name) {
    const UniqueFd netlink(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
    struct {
        nlmsghdr header;
        ifinfomsg info;
    } request{};
    const UniqueFd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    ifreq named{};
    name.copy(named.ifr_name, IFNAMSIZ - 1);
    if (::ioctl(socket.get(), SIOCGIFINDEX, &named) != 0) {
        return false;
    }
    request.header.nlmsg_len = sizeof(request);
    request.header.nlmsg_type = RTM_DELLINK;
    request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
    request.info.ifi_family = AF_UNSPEC;
    request.info.ifi_index = named.ifr_ifindex;
    struct {
        nlmsghdr header;
        nlmsgerr error;
    } answer{};
    return ::send(netlink.get(), &request, sizeof(request), 0) == sizeof(request) &&
           ::recv(netlink.get(), &answer, sizeof(answer), MSG_TRUNC) > 0 && answer.error.error == 0;
}

TEST(TapInterface, ThatSomebodyElseHasOpenedIsTakenOverIfItIsThatOne) {
    const std::string reason = in_own_network([] {
        const Tap opened(kName);
        const auto copy = [](int fd) { return UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0)); };
        const auto refusal = [&](UniqueFd fd, const std::string& name) {
            return error_of([&] { const Tap tap(std::move(fd), name); });
        };
        EXPECT_EQ(refusal(copy(opened.fd()), kName), "");
        EXPECT_TRUE(mentions(refusal(copy(opened.fd()), "other0"), "it is another interface"));
        EXPECT_TRUE(mentions(refusal(UniqueFd(::open("/dev/net/tun", O_RDWR | O_CLOEXEC)), kName),
                             "it is no tap interface with virtio headers"));
        EXPECT_TRUE(
            mentions(refusal(UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC)), kName), "it is no tap interface"));
        EXPECT_TRUE(mentions(refusal(UniqueFd(::open("/dev/net/tun", O_PATH | O_CLOEXEC)), kName), "it is not open"));
        EXPECT_TRUE(mentions(refusal(UniqueFd(), kName), "it is not open"));
        for (const int flags : {IFF_TAP | IFF_NO_PI, IFF_TAP | IFF_VNET_HDR, IFF_TUN | IFF_NO_PI | IFF_VNET_HDR}) {
            UniqueFd fd(::open("/dev/net/tun", O_RDWR | O_CLOEXEC));
            ifreq request{};
            std::string("vmmtest1").copy(request.ifr_name, IFNAMSIZ - 1);
            request.ifr_flags = static_cast<short>(flags);
            ASSERT_EQ(::ioctl(fd.get(), TUNSETIFF, &request), 0);
            EXPECT_TRUE(mentions(refusal(std::move(fd), "vmmtest1"), "it is no tap interface")) << flags;
        }
    });
    if (!reason.empty()) {
        GTEST_SKIP() << reason;
    }
}

TEST(TapInterface, ThatSomebodyHasIsRefused) {
    const std::string reason = in_own_network([] {
        const Tap first(kName);
        const std::string refusal = error_of([] { const Tap second(kName); });
        EXPECT_TRUE(mentions(refusal, kName)) << refusal;
        EXPECT_TRUE(mentions(refusal, "another process has it")) << refusal;
    });
    if (!reason.empty()) {
        GTEST_SKIP() << reason;
    }
}

TEST(TapInterface, ThatIsNoTapIsRefused) {
    const std::string reason = in_own_network([] {
        const std::string refusal = error_of([] { const Tap tap("lo"); });
        EXPECT_TRUE(mentions(refusal, "lo")) << refusal;
        EXPECT_TRUE(mentions(refusal, "is no tap")) << refusal;
    });
    if (!reason.empty()) {
        GTEST_SKIP() << reason;
    }
}

TEST(TapInterface, ThatThisUserMayNotMakeSaysHowItIsMadeForHim) {
    if (::geteuid() != 0) {
        GTEST_SKIP() << "only root can become another user";
    }
    const std::string reason = in_own_network([] {
        const pid_t child = ::fork();
        if (child == 0) {
            // This machine decides whether /dev/net/tun may be opened. In both cases the message says what to do.
            const bool other =
                ::setresgid(kNobody, kNobody, kNobody) == 0 && ::setresuid(kNobody, kNobody, kNobody) == 0;
            const std::string refusal = error_of([] { const Tap tap(kName); });
            const bool good = mentions(refusal, kName) && (mentions(refusal, "ip tuntap add vmmtest0 mode tap user") ||
                                                           mentions(refusal, "chmod 666 /dev/net/tun"));
            ::_exit(other && good ? 0 : 1);
        }
        int status = 0;
        ::waitpid(child, &status, 0);
        EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    });
    if (!reason.empty()) {
        GTEST_SKIP() << reason;
    }
}

TEST(TapInterface, ThatIsDeletedTakesTheLinkDownAndIsNotLookedAtAgain) {
    const std::string reason = in_own_network([] {
        unsigned losses = 0;
        Net net("net0", std::make_unique<Tap>(kName), make_mac_address("t"), [&] { ++losses; });
        set_up(kName);
        VirtioRig rig(net);
        ASSERT_TRUE(rig.start());
        EXPECT_EQ(rig.driver().read_config<std::uint16_t>(6), 1U);
        ASSERT_TRUE(erase(kName));
        EXPECT_TRUE(rig.pump_until([&] { return losses != 0; }));
        EXPECT_EQ(rig.driver().read_config<std::uint16_t>(6), 0U); // 5.1.4: VIRTIO_NET_S_LINK_UP is not set
        EXPECT_EQ(net.sources().size(), 2U) << "it is not polled: it would be ready for ever";
        // Sent buffers come back, and the frames go nowhere.
        const GuestAddress at = rig.allocate(128);
        rig.queue(1).add({{at, 72}});
        rig.ring(1);
        EXPECT_TRUE(rig.wait_for_used(1));
        EXPECT_EQ(net.statistics().dropped, 1U);
        EXPECT_EQ(losses, 1U);
    });
    if (!reason.empty()) {
        GTEST_SKIP() << reason;
    }
}

TEST(TapInterface, OfSeveralQueuesHasItsFramesInTheFirstUntilOthersAreAttached) {
    const std::string reason = in_own_network([] {
        constexpr unsigned kQueues = 4;
        auto links = Tap::make_queues(kName, kQueues);
        ASSERT_EQ(links.size(), kQueues);
        set_up(kName);
        // The hash of a flow decides its queue. Of many flows, some come by each attached queue.
        const auto has_frames = [&](FrameLink& link) {
            std::array<std::byte, 2048> frame{};
            const std::array<iovec, 1> to{{{frame.data(), frame.size()}}};
            bool any = false;
            while (link.receive(to) > 0) {
                any = true;
            }
            return any;
        };
        const auto queues_with_frames = [&] {
            send_many_flows(kName);
            std::vector<bool> all;
            for (const auto& link : links) {
                all.push_back(has_frames(*link));
            }
            return all;
        };
        EXPECT_EQ(queues_with_frames(), (std::vector<bool>{true, false, false, false}));
        EXPECT_TRUE(links[1]->set_attached(true));
        EXPECT_EQ(queues_with_frames(), (std::vector<bool>{true, true, false, false}));
        EXPECT_TRUE(links[1]->set_attached(false));
        EXPECT_EQ(queues_with_frames(), (std::vector<bool>{true, false, false, false}));
    });
    if (!reason.empty()) {
        GTEST_SKIP() << reason;
    }
}

TEST(TapInterface, OfSeveralQueuesIsTakenOver) {
    const std::string reason = in_own_network([] {
        {
            const auto links = Tap::take_queues(Tap::open_queues(kName, 3), kName);
            ASSERT_EQ(links.size(), 3U);
            EXPECT_TRUE(links[2]->set_attached(true));
        }
        std::vector<UniqueFd> twice = Tap::open_queues(kName, 2);
        twice[1].reset(::fcntl(twice[0].get(), F_DUPFD_CLOEXEC, 0));
        const std::string refusal = error_of([&] { static_cast<void>(Tap::take_queues(std::move(twice), kName)); });
        EXPECT_TRUE(mentions(refusal, "one queue came more than once")) << refusal;
    });
    if (!reason.empty()) {
        GTEST_SKIP() << reason;
    }
}

TEST(TapInterface, OfASingleQueueIsNotTakenForSeveral) {
    const std::string reason = in_own_network([] {
        {
            std::vector<UniqueFd> twice = Tap::open_queues(kName, 1);
            twice.emplace_back(::fcntl(twice[0].get(), F_DUPFD_CLOEXEC, 0));
            const std::string refusal = error_of([&] { static_cast<void>(Tap::take_queues(std::move(twice), kName)); });
            EXPECT_TRUE(mentions(refusal, "opened as one of a single queue")) << refusal;
        }
        const Tap single(kName);
        const std::string refusal = error_of([] { static_cast<void>(Tap::open_queues(kName, 2)); });
        EXPECT_TRUE(mentions(refusal, std::string("ip tuntap add ") + kName + " mode tap multi_queue")) << refusal;
    });
    if (!reason.empty()) {
        GTEST_SKIP() << reason;
    }
}

} // namespace
} // namespace vmm::devices::testing
