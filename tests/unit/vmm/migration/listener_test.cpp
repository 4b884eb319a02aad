#include "vmm/migration/listener.hpp"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "kvm/host/unix_listener.hpp"
#include "support/host_child_process.hpp"
#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/vmm_migration_link.hpp"

namespace vmm {
namespace {

using testing::error_of;
using testing::mentions;

std::string listen_error(const MigrationAddress& address, const MigrationSecurity& security = {}) {
    return error_of([&] { return MigrationListener(address, security, nullptr).fd(); });
}

TEST(MigrationListener, UnixSocketIsItsUsersAloneAndGoesWithIt) {
    const testing::TemporaryDirectory directory;
    const MigrationAddress address = MigrationAddress::parse("unix:" + (directory / "socket"));
    {
        MigrationListener listener(address, {}, nullptr);
        EXPECT_EQ(listener.address(), address);
        struct stat file {};
        ASSERT_EQ(::stat(address.path.c_str(), &file), 0);
        EXPECT_EQ(file.st_mode & 0777, 0600U);
        const testing::MigrationLink link = testing::make_link(listener);
        EXPECT_EQ(link.listening->name(), to_string(address));
        EXPECT_EQ(link.connecting->name(), to_string(address));
        EXPECT_TRUE(link.listening->takes_descriptors());
    }
    EXPECT_FALSE(std::filesystem::exists(address.path));
}

TEST(MigrationListener, UnixSocketThatWasLeftBehindIsReplaced) {
    const testing::TemporaryDirectory directory;
    const MigrationAddress address = MigrationAddress::parse("unix:" + (directory / "socket"));
    {
        const MigrationListener killed(address, {}, nullptr);
        std::filesystem::create_hard_link(address.path, directory / "kept");
    }
    std::filesystem::rename(directory / "kept", address.path);
    std::string warning;
    MigrationListener listener(address, {}, [&](const std::string& line) { warning = line; });
    EXPECT_TRUE(mentions(warning, "left behind by a process that has ended")) << warning;
    EXPECT_NE(testing::make_link(listener).connecting, nullptr);
    EXPECT_TRUE(mentions(listen_error(address), "another process uses it")) << listen_error(address);
}

TEST(MigrationListener, PortThatTheHostChoosesIsKnown) {
    MigrationListener first(MigrationAddress::parse("tcp:127.0.0.1:0"), {}, nullptr);
    const MigrationListener second(MigrationAddress::parse("tcp:127.0.0.1:0"), {}, nullptr);
    EXPECT_NE(first.address().port, "0");
    EXPECT_NE(first.address().port, second.address().port);
    EXPECT_NE(testing::make_link(first).connecting, nullptr);
}

TEST(MigrationListener, PortThatIsInUseIsAnError) {
    const MigrationListener listener(MigrationAddress::parse("tcp:127.0.0.1:0"), {}, nullptr);
    EXPECT_EQ(listen_error(listener.address()),
              "cannot listen at " + to_string(listener.address()) +
                  ": Address already in use (another process uses that port: take another, or 0 for one that is free)");
}

TEST(MigrationListener, AddressOfAnotherHostIsAnError) {
    EXPECT_TRUE(mentions(listen_error(MigrationAddress::parse("tcp:192.0.2.1:0"), {.insecure = true}),
                         "that is no address of this host"));
}

TEST(MigrationListener, UnprotectedTcpIsForLoopbackOnly) {
    EXPECT_TRUE(mentions(listen_error(MigrationAddress::parse("tcp:0.0.0.0:0")), "everybody between the hosts"));
    EXPECT_EQ(listen_error(MigrationAddress::parse("tcp:0.0.0.0:0"), {.insecure = true}), "");
}

TEST(MigrationListener, PortsOfConnectionsThatEndedAreFree) {
    MigrationAddress address;
    {
        MigrationListener listener(MigrationAddress::parse("tcp:127.0.0.1:0"), {}, nullptr);
        address = listener.address();
        testing::MigrationLink link = testing::make_link(listener);
        link.listening.reset(); // This end closes first, so the port is in TIME_WAIT.
    }
    EXPECT_EQ(listen_error(address), "");
}

TEST(MigrationListener, TakesNobodyIfNobodyIsThere) {
    const testing::TemporaryDirectory directory;
    for (const std::string& text : {std::string("tcp:127.0.0.1:0"), "unix:" + (directory / "socket")}) {
        MigrationListener listener(MigrationAddress::parse(text), {}, nullptr);
        EXPECT_FALSE(listener.take().has_value());
    }
}

TEST(MigrationListener, CallerThatHasGoneDoesNoHarm) {
    MigrationListener listener(MigrationAddress::parse("tcp:127.0.0.1:0"), {}, nullptr);
    {
        const auto channel = connect_channel(listener.address(), {}, -1, testing::kPatience);
        const linger at_once{1, 0}; // it ends with a reset
        ::setsockopt(channel->fd(), SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
    }
    // The kernel decides if it still reports the connection.
    if (auto caller = listener.take()) {
        static_cast<void>(error_of([&] { return listener.establish(std::move(*caller), -1, testing::kPatience); }));
    }
    EXPECT_NE(testing::make_link(listener).connecting, nullptr);
}

TEST(MigrationListener, HostWithoutDescriptorsIsAnError) {
    MigrationListener listener(MigrationAddress::parse("tcp:127.0.0.1:0"), {}, nullptr);
    const auto channel = connect_channel(listener.address(), {}, -1, testing::kPatience);
    EXPECT_TRUE(mentions(testing::in_child_process([&] {
                             testing::set_limit(RLIMIT_NOFILE, 0);
                             return error_of([&] { return listener.take().has_value(); });
                         }),
                         "cannot take a connection at " + to_string(listener.address()) + ": Too many open files"));
}

TEST(MigrationListener, SilentCallersKeepNobodyOff) {
    const testing::TemporaryDirectory directory;
    for (const std::string& text : {std::string("tcp:127.0.0.1:0"), "unix:" + (directory / "socket")}) {
        MigrationListener listener(MigrationAddress::parse(text), {}, nullptr);
        std::vector<std::unique_ptr<Channel>> silent;
        for (int index = 0; index < 20; ++index) {
            silent.push_back(connect_channel(listener.address(), {}, -1, testing::kPatience));
        }
        std::vector<MigrationListener::Caller> callers;
        for (std::size_t index = 0; index < silent.size(); ++index) {
            callers.push_back(testing::take_caller(listener));
        }
        EXPECT_NE(testing::make_link(listener).connecting, nullptr);
    }
}

TEST(MigrationListener, CallerOfAnotherUserIsRefused) {
    if (::geteuid() != 0) {
        GTEST_SKIP() << "only root can be another user";
    }
    const testing::TemporaryDirectory directory;
    ::chmod(directory.path().c_str(), 0755);
    MigrationListener listener(MigrationAddress::parse("unix:" + (directory / "socket")), {}, nullptr);
    ::chmod(listener.address().path.c_str(), 0666);
    const UniqueFd socket = make_unix_socket(SOCK_STREAM);
    const pid_t child = ::fork();
    if (child == 0) {
        ::_exit(::setresuid(65534, 65534, 65534) == 0 && connect_unix_socket(socket.get(), listener.address().path) == 0
                    ? 0
                    : 1);
    }
    int status = 1;
    ::waitpid(child, &status, 0);
    ASSERT_EQ(status, 0);
    const std::string error =
        error_of([&] { return listener.establish(testing::take_caller(listener), -1, testing::kPatience); });
    EXPECT_TRUE(mentions(error, "it is another user: 65534")) << error;
}

} // namespace
} // namespace vmm
