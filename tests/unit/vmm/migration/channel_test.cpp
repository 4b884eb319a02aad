#include "vmm/migration/channel.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <future>
#include <optional>
#include <thread>

#include "kvm/host/event_fd.hpp"
#include "kvm/host/stoppable_read.hpp"
#include "support/host_errors.hpp"
#include "support/host_pipe.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/vmm_migration_link.hpp"

namespace vmm {
namespace {

using testing::error_of;
using testing::make_link;
using testing::mentions;
using testing::MigrationLink;

/// The message of the LinkError that `action` throws, or "" if it throws nothing. Other exceptions pass through.
template <typename Action>
std::string link_error_of(Action action) {
    try {
        action();
    } catch (const LinkError& error) {
        return error.what();
    }
    return {};
}

template <typename Action>
bool is_stopped(Action action) {
    try {
        action();
    } catch (const StoppedError&) {
        return true;
    }
    return false;
}

/// A connection over each kind of socket.
class MigrationChannelTest : public ::testing::TestWithParam<MigrationAddress::Kind> {
  protected:
    MigrationChannelTest() {
        MigrationAddress address{.kind = GetParam()};
        if (address.kind == MigrationAddress::Kind::kUnix) {
            address.path = directory_ / "socket";
        } else {
            address.host = "127.0.0.1";
            address.port = "0";
        }
        listener_.emplace(address, MigrationSecurity{}, nullptr);
        link_ = make_link(*listener_, {}, stop_.fd(), -1);
    }

    testing::TemporaryDirectory directory_;
    EventFd stop_;
    std::optional<MigrationListener> listener_;
    MigrationLink link_;
};

void send_all(Channel& channel, std::span<const std::byte> bytes) {
    // In pieces of unusual sizes, some of them empty.
    while (!bytes.empty()) {
        std::array<std::span<const std::byte>, 16> pieces;
        std::size_t size = 1;
        for (auto& piece : pieces) {
            piece = bytes.first(std::min(size, bytes.size()));
            bytes = bytes.subspan(piece.size());
            size = size * 3 % 300'007;
        }
        channel.send(pieces);
    }
}

TEST_P(MigrationChannelTest, CarriesMuchBothWaysAtOnce) {
    const auto sent = testing::random_bytes(8UL << 20);
    std::vector<std::byte> there(sent.size());
    std::vector<std::byte> back(sent.size());
    const auto first = std::async(std::launch::async, [&] { send_all(*link_.listening, sent); });
    const auto second = std::async(std::launch::async, [&] { send_all(*link_.connecting, sent); });
    const auto third = std::async(std::launch::async, [&] { link_.listening->receive(back); });
    link_.connecting->receive(there);
    first.wait();
    second.wait();
    third.wait();
    EXPECT_TRUE(there == sent);
    EXPECT_TRUE(back == sent);
}

TEST_P(MigrationChannelTest, NothingIsSentAndReceivedAtOnce) {
    link_.connecting->send(std::span<const std::byte>());
    link_.connecting->send(std::span<const std::span<const std::byte>>());
    link_.connecting->receive({});
    EXPECT_FALSE(link_.listening->wait_readable(std::chrono::milliseconds(0)));
}

TEST_P(MigrationChannelTest, WaitsForWhatIsToBeReceived) {
    EXPECT_FALSE(link_.listening->wait_readable(std::chrono::milliseconds(1)));
    const std::byte one{1};
    link_.connecting->send({&one, 1});
    EXPECT_TRUE(link_.listening->wait_readable(testing::kPatience));
    std::byte got{};
    link_.listening->receive({&got, 1});
    EXPECT_EQ(got, one);
    link_.connecting.reset();
    EXPECT_TRUE(link_.listening->wait_readable(testing::kPatience));
}

TEST_P(MigrationChannelTest, SilenceIsALostLink) {
    link_.listening->set_patience(std::chrono::milliseconds(20));
    std::byte byte{};
    const std::string error = link_error_of([&] { link_.listening->receive({&byte, 1}); });
    EXPECT_TRUE(mentions(error, "cannot receive from " + link_.listening->name() + ": not a byte has passed for 20 ms"))
        << error;
}

TEST_P(MigrationChannelTest, WhoDoesNotReceiveIsALostLink) {
    link_.listening->set_patience(std::chrono::milliseconds(20));
    const std::vector<std::byte> much(1UL << 20);
    const std::string error = link_error_of([&] {
        for (;;) { // it ends when every buffer in between is full
            link_.listening->send(much);
        }
    });
    EXPECT_TRUE(mentions(error, "cannot send to " + link_.listening->name())) << error;
    EXPECT_TRUE(mentions(error, "not a byte has passed")) << error;
}

TEST_P(MigrationChannelTest, EndInMidTransferIsALostLink) {
    const std::vector<std::byte> half(100);
    std::vector<std::byte> all(200);
    link_.connecting->send(half);
    link_.connecting.reset();
    const std::string error = link_error_of([&] { link_.listening->receive(all); });
    EXPECT_TRUE(mentions(error, "cannot receive from " + link_.listening->name() + ": the connection has ended"))
        << error;
    const std::vector<std::byte> much(1UL << 20);
    EXPECT_NE(link_error_of([&] {
                  for (;;) { // the kernel may accept some before it knows
                      link_.listening->send(much);
                  }
              }),
              "");
}

TEST_P(MigrationChannelTest, OtherEndThatLeavesBytesBehindIsALostLink) {
    const std::vector<std::byte> some(100);
    link_.listening->send(some);
    link_.connecting.reset();
    std::byte byte{};
    EXPECT_NE(link_error_of([&] { link_.listening->receive({&byte, 1}); }), "");
}

TEST_P(MigrationChannelTest, StopEndsEveryWait) {
    std::byte byte{};
    auto receiving = std::async(std::launch::async, [&] {
        return is_stopped([&] { link_.listening->receive({&byte, 1}); });
    });
    stop_.signal();
    EXPECT_TRUE(receiving.get());
    EXPECT_TRUE(is_stopped([&] { static_cast<void>(link_.listening->wait_readable(testing::kPatience)); }));
    const std::vector<std::byte> much(1UL << 20);
    EXPECT_TRUE(is_stopped([&] {
        for (;;) {
            link_.listening->send(much);
        }
    }));
}

TEST_P(MigrationChannelTest, ShutDownEndsTheWaitsOfBothEnds) {
    std::byte here{};
    std::byte there{};
    auto receiving = std::async(std::launch::async, [&] {
        return link_error_of([&] { link_.listening->receive({&here, 1}); });
    });
    auto beyond = std::async(std::launch::async, [&] {
        return link_error_of([&] { link_.connecting->receive({&there, 1}); });
    });
    link_.listening->shut_down();
    EXPECT_NE(receiving.get(), "");
    EXPECT_NE(beyond.get(), "");
    EXPECT_NE(link_error_of([&] { link_.listening->send({&here, 1}); }), "");
    link_.listening->shut_down();
}

/// The other end's socket is not closed: TCP would go on waiting for room in it.
TEST_P(MigrationChannelTest, ShutDownEndsASendThatTheOtherEndWaitsIn) {
    link_.connecting->set_patience(std::chrono::hours(1));
    const std::vector<std::byte> much(1UL << 20);
    auto sending = std::async(std::launch::async, [&] {
        return link_error_of([&] {
            for (;;) { // It waits when every buffer between is full.
                link_.connecting->send(much);
            }
        });
    });
    EXPECT_TRUE(link_.listening->wait_readable(testing::kPatience));
    link_.listening->shut_down();
    EXPECT_TRUE(mentions(sending.get(), "cannot send to " + link_.connecting->name()));
}

INSTANTIATE_TEST_SUITE_P(Sockets, MigrationChannelTest,
                         ::testing::Values(MigrationAddress::Kind::kUnix, MigrationAddress::Kind::kTcp),
                         [](const auto& kind) { return kind.param == MigrationAddress::Kind::kUnix ? "Unix" : "Tcp"; });

/// The two ends of a pair of unix sockets.
class MigrationDescriptorsTest : public ::testing::Test {
  protected:
    MigrationDescriptorsTest() {
        testing::SocketPair pair;
        ours_.emplace(std::move(pair.ours), "unix:ours", -1);
        theirs_.emplace(std::move(pair.theirs), "unix:theirs", -1);
        ours_->set_patience(testing::kPatience);
        theirs_->set_patience(testing::kPatience);
    }

    /// Sends `byte` with `fds`, ignoring the rules of Channel.
    void send_raw(char byte, std::span<const int> fds) {
        std::vector<std::byte> control(CMSG_SPACE(fds.size_bytes()));
        iovec vector{&byte, 1};
        msghdr message{};
        message.msg_iov = &vector;
        message.msg_iovlen = 1;
        if (!fds.empty()) {
            message.msg_control = control.data();
            message.msg_controllen = control.size();
            cmsghdr* const header = CMSG_FIRSTHDR(&message);
            header->cmsg_level = SOL_SOCKET;
            header->cmsg_type = SCM_RIGHTS;
            header->cmsg_len = CMSG_LEN(fds.size_bytes());
            std::memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
        }
        ASSERT_EQ(::sendmsg(ours_->fd(), &message, 0), 1);
    }

    std::optional<Channel> ours_;
    std::optional<Channel> theirs_;
};

TEST_F(MigrationDescriptorsTest, OneAndSixtyFourArrive) {
    ASSERT_TRUE(ours_->takes_descriptors());
    const testing::Pipe pipe;
    for (const std::size_t count : {1UL, 64UL}) {
        const std::vector<int> fds(count, pipe.writer.get());
        ours_->send_descriptors(fds);
        const std::byte after{7};
        ours_->send({&after, 1});
        const std::vector<UniqueFd> received = theirs_->receive_descriptors();
        ASSERT_EQ(received.size(), count);
        for (const UniqueFd& fd : received) {
            EXPECT_EQ(::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
        }
        testing::write_text(received.back().get(), "here");
        EXPECT_EQ(testing::read_available(pipe.reader.get()), "here");
        std::byte next{};
        theirs_->receive({&next, 1});
        EXPECT_EQ(next, after);
    }
}

TEST_F(MigrationDescriptorsTest, OtherNumbersAreTheCallersFault) {
    EXPECT_TRUE(mentions(error_of([&] {
                             ours_->send_descriptors({});
                             return 0;
                         }),
                         "there have to be 1 to 64"));
    EXPECT_TRUE(mentions(error_of([&] {
                             ours_->send_descriptors(std::vector<int>(65, 0));
                             return 0;
                         }),
                         "there have to be 1 to 64"));
}

TEST_F(MigrationDescriptorsTest, TooManyAreRefusedAndClosed) {
    testing::Pipe pipe;
    send_raw('\0', std::vector<int>(65, pipe.writer.get()));
    pipe.writer.reset();
    EXPECT_TRUE(mentions(error_of([&] { return theirs_->receive_descriptors().size(); }), "more than 64"));
    // No process has a writing end any more.
    pollfd ended{pipe.reader.get(), POLLIN, 0};
    EXPECT_EQ(::poll(&ended, 1, 0), 1);
}

TEST_F(MigrationDescriptorsTest, SomethingElseIsRefusedAndClosed) {
    testing::Pipe pipe;
    send_raw('x', std::array{pipe.writer.get()});
    pipe.writer.reset();
    EXPECT_TRUE(mentions(error_of([&] { return theirs_->receive_descriptors().size(); }), "something else has come"));
    pollfd ended{pipe.reader.get(), POLLIN, 0};
    EXPECT_EQ(::poll(&ended, 1, 0), 1);
}

TEST_F(MigrationDescriptorsTest, ByteWithoutAnyBringsNone) {
    send_raw('\0', {});
    EXPECT_TRUE(theirs_->receive_descriptors().empty());
}

TEST_F(MigrationDescriptorsTest, EndAndSilenceAreLostLinks) {
    theirs_->set_patience(std::chrono::milliseconds(20));
    EXPECT_TRUE(mentions(link_error_of([&] { static_cast<void>(theirs_->receive_descriptors()); }), "not a byte"));
    ours_.reset();
    EXPECT_TRUE(mentions(link_error_of([&] { static_cast<void>(theirs_->receive_descriptors()); }), "has ended"));
    EXPECT_NE(link_error_of([&] { theirs_->send_descriptors(std::array{theirs_->fd()}); }), "");
}

TEST_F(MigrationDescriptorsTest, ProcessAtTheOtherEndIsKnown) {
    if (!ours_->peer_process()) {
        GTEST_SKIP() << "this kernel has no pidfds";
    }
    // Here it is this process, which has not ended.
    pollfd ended{ours_->peer_process().get(), POLLIN, 0};
    EXPECT_EQ(::poll(&ended, 1, 0), 0);
}

TEST(MigrationConnecting, TcpTakesNoDescriptors) {
    MigrationListener listener(MigrationAddress::parse("tcp:localhost:0"), {}, nullptr);
    MigrationLink link = make_link(listener);
    EXPECT_FALSE(link.connecting->takes_descriptors());
    EXPECT_FALSE(link.connecting->peer_process());
    EXPECT_TRUE(mentions(error_of([&] {
                             link.connecting->send_descriptors(std::array{0});
                             return 0;
                         }),
                         "only through unix sockets"));
    EXPECT_TRUE(
        mentions(error_of([&] { return link.connecting->receive_descriptors().size(); }), "only through unix sockets"));
    EXPECT_EQ(link.connecting->name(), to_string(listener.address()));
    EXPECT_TRUE(link.listening->name().starts_with("tcp:127.0.0.1:")) << link.listening->name();
}

std::string connect_error(const MigrationAddress& address, const MigrationSecurity& security = {}) {
    return error_of([&] { return connect_channel(address, security, -1, testing::kPatience); });
}

TEST(MigrationConnecting, NobodyThereIsAnErrorWithAdvice) {
    const testing::TemporaryDirectory directory;
    const std::string path = directory / "socket";
    const MigrationAddress there = MigrationAddress::parse("unix:" + path);
    EXPECT_EQ(connect_error(there), "cannot connect to unix:" + path +
                                        ": No such file or directory (nobody listens there: start the other end "
                                        "first)");
    MigrationAddress address;
    {
        const MigrationListener listener(MigrationAddress::parse("tcp:127.0.0.1:0"), {}, nullptr);
        address = listener.address();
    }
    EXPECT_EQ(connect_error(address), "cannot connect to " + to_string(address) +
                                          ": Connection refused (nobody listens there: start the other end first, and "
                                          "check the port)");
    address.host = "localhost";
    const std::string error = connect_error(address);
    EXPECT_TRUE(mentions(error, ": 127.0.0.1: Connection refused; ::1: ")) << error;
}

TEST(MigrationConnecting, EveryAddressOfANameIsTried) {
    // "localhost" means 127.0.0.1 first.
    std::optional<MigrationListener> listener;
    const std::string error = error_of(
        [&] { return listener.emplace(MigrationAddress::parse("tcp:[::1]:0"), MigrationSecurity{}, nullptr).fd(); });
    if (!listener) {
        GTEST_SKIP() << error;
    }
    MigrationAddress address = listener->address();
    address.host = "localhost";
    const auto channel = connect_channel(address, {}, -1, testing::kPatience);
    EXPECT_EQ(channel->name(), to_string(address));
}

TEST(MigrationConnecting, WhatIsNotAllowedIsNotTried) {
    EXPECT_TRUE(mentions(connect_error(MigrationAddress::parse("tcp:192.0.2.1:1")), "everybody between the hosts"));
    EXPECT_TRUE(mentions(connect_error(MigrationAddress::parse("tcp:127.0.0.1:0")), "there is no port"));
    const MigrationAddress too_long{.path = std::string(200, 'x')};
    EXPECT_TRUE(mentions(connect_error(too_long), "1 to 107"));
}

TEST(MigrationConnecting, FullQueueIsWaitedForUntilPatienceOrStop) {
    const testing::TemporaryDirectory directory;
    const std::string path = directory / "socket";
    const UnixListener listener(path, SOCK_STREAM, "the test's socket", nullptr);
    ASSERT_EQ(::listen(listener.fd(), 0), 0);
    std::vector<UniqueFd> waiting;
    do {
        waiting.push_back(make_unix_socket(SOCK_STREAM));
    } while (connect_unix_socket(waiting.back().get(), path) == 0);
    const MigrationAddress address = MigrationAddress::parse("unix:" + path);
    EXPECT_TRUE(mentions(error_of([&] { return connect_channel(address, {}, -1, std::chrono::milliseconds(30)); }),
                         "try again"));
    const EventFd stop;
    stop.signal();
    EXPECT_TRUE(is_stopped([&] { static_cast<void>(connect_channel(address, {}, stop.fd(), testing::kPatience)); }));
}

TEST(MigrationConnecting, SocketThatAnotherUserListensOnIsRefused) {
    if (::geteuid() != 0) {
        GTEST_SKIP() << "only root can be another user";
    }
    const testing::TemporaryDirectory directory;
    ::chmod(directory.path().c_str(), 0755);
    const std::string path = directory / "socket";
    const UnixListener listener(path, SOCK_STREAM, "the test's socket", nullptr);
    // The kernel reports the process that called listen() last.
    const pid_t child = ::fork();
    if (child == 0) {
        ::_exit(::setresuid(65534, 65534, 65534) == 0 && ::listen(listener.fd(), 8) == 0 ? 0 : 1);
    }
    int status = 1;
    ::waitpid(child, &status, 0);
    ASSERT_EQ(status, 0);
    const std::string error = connect_error(MigrationAddress::parse("unix:" + path));
    EXPECT_TRUE(mentions(error, "another user listens there: 65534")) << error;
}

} // namespace
} // namespace vmm
