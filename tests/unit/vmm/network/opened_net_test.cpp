// The descriptors of a network, passed from the process that opens them to a machine that may open nothing.

#include "vmm/network/opened_net.hpp"

#include <gtest/gtest.h>

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "kvm/host/error.hpp"
#include "support/host_errors.hpp"
#include "support/host_waiting.hpp"
#include "vmm/network/user_network.hpp"

namespace vmm {
namespace {

using testing::error_of;
using testing::eventually;
using testing::mentions;

/// Copies the descriptors, as SCM_RIGHTS does.
std::vector<UniqueFd> handed_over(const OpenedNet& opened) {
    std::vector<UniqueFd> copies;
    for (const int fd : opened.descriptors()) {
        copies.emplace_back(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    }
    return copies;
}

std::array<UniqueFd, 2> stream_pair() {
    std::array<int, 2> ends{-1, -1};
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
    return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

class OpenedNetOfPasst : public ::testing::TestWithParam<bool> {
  protected:
    void SetUp() override {
        try {
            check_user_network(net_);
        } catch (const Error& error) {
            GTEST_SKIP() << error.what();
        }
    }
    const NetConfig net_{.user = true, .host_loopback = GetParam()};
};

TEST_P(OpenedNetOfPasst, RunsOnUntilWhoTookItOverClosesIt) {
    std::optional<OpenedNet> opened(OpenedNet::open(net_));
    OpenedNet taken = OpenedNet::from(net_, handed_over(*opened));
    opened.reset();
    EXPECT_TRUE(taken.is_there());
    EXPECT_EQ(make_frame_filter(net_, std::move(taken.addresses)) == nullptr, net_.host_loopback);
    std::optional<UserNetwork> network(std::in_place, std::move(taken.passt), std::move(taken.passt_errors));
    EXPECT_EQ(network->pid(), -1);
    UniqueFd socket = network->take_socket();
    pollfd hung_up{socket.get(), POLLIN, 0};
    EXPECT_EQ(::poll(&hung_up, 1, 0), 0) << "passt has gone along with who started it";
    // passt has the other end of its error pipe as long as it runs.
    const UniqueFd errors = network->let_go();
    network.reset();
    socket.reset();
    std::array<char, 256> said{};
    EXPECT_TRUE(eventually([&] { return ::read(errors.get(), said.data(), said.size()) == 0; }));
    EXPECT_GT(::waitpid(-1, nullptr, 0), 0) << "it was a child of this process, which nobody else waits for";
}

INSTANTIATE_TEST_SUITE_P(, OpenedNetOfPasst, ::testing::Bool(),
                         [](const auto& param) { return param.param ? "WithTheHost" : "KeptFromTheHost"; });

TEST(OpenedNetTest, IsRefusedAnotherNumberOfDescriptors) {
    const auto refusal = [](const NetConfig& net, std::size_t count) {
        return error_of([&] { static_cast<void>(OpenedNet::from(net, std::vector<UniqueFd>(count))); });
    };
    EXPECT_TRUE(mentions(refusal({.tap = "tap7"}, 2), "2 descriptors came for it, and it needs 1"));
    EXPECT_TRUE(mentions(refusal({.tap = "tap7", .queues = 4}, 3), "3 descriptors came for it, and it needs 4"));
    EXPECT_TRUE(mentions(refusal({.user = true}, 2), "2 descriptors came for it, and it needs 3 or 4"));
    EXPECT_TRUE(mentions(refusal({.user = true}, 5), "5 descriptors came"));
    EXPECT_TRUE(
        mentions(refusal({.user = true, .host_loopback = true}, 3), "3 descriptors came for it, and it needs 2"));
}

TEST(OpenedNetTest, IsRefusedDescriptorsOfSomethingElse) {
    const auto null = [] { return UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC)); };
    const auto socket = [](int domain, int type) { return UniqueFd(::socket(domain, type | SOCK_CLOEXEC, 0)); };
    const auto expect_refused = [](UniqueFd connection, UniqueFd errors) {
        const std::string refusal =
            error_of([&] { const UserNetwork network(std::move(connection), std::move(errors)); });
        EXPECT_TRUE(mentions(refusal, "no unix stream socket that is connected")) << refusal;
    };
    expect_refused(null(), null());
    expect_refused(socket(AF_UNIX, SOCK_STREAM), null());
    expect_refused(socket(AF_INET, SOCK_STREAM), null());
    expect_refused(socket(AF_UNIX, SOCK_DGRAM), null());
    auto ends = stream_pair();
    expect_refused(std::move(ends[0]), null());
    expect_refused(UniqueFd(), std::move(ends[1]));
    EXPECT_TRUE(mentions(error_of([&] { const HostAddresses addresses({null(), {}}); }), "no socket of rtnetlink"));
    HostAddresses::Sockets sockets = HostAddresses::open();
    sockets.changes = null();
    EXPECT_TRUE(
        mentions(error_of([&] { const HostAddresses addresses(std::move(sockets)); }), "no socket of rtnetlink"));
}

} // namespace
} // namespace vmm
