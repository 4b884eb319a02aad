#include "kvm/host/unix_listener.hpp"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <cerrno>
#include <filesystem>
#include <optional>
#include <string>

#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"

namespace vmm {
namespace {

using testing::error_of;
using testing::mentions;

class UnixListenerTest : public ::testing::Test {
  protected:
    [[nodiscard]] UnixListener listen() {
        return {path_, SOCK_SEQPACKET, "the test's unix socket", [this](const std::string& line) { warning_ = line; }};
    }
    std::string refusal() {
        return error_of([this] { return listen().fd(); });
    }

    testing::TemporaryDirectory directory_;
    std::string path_ = directory_ / "socket";
    std::string warning_;
};

TEST_F(UnixListenerTest, IsConnectedToAndGoesWithItsFile) {
    {
        const UnixListener listener = listen();
        const UniqueFd client = make_unix_socket(SOCK_SEQPACKET);
        EXPECT_EQ(connect_unix_socket(client.get(), path_), 0);
    }
    EXPECT_FALSE(std::filesystem::exists(path_));
    EXPECT_EQ(warning_, "");
}

TEST_F(UnixListenerTest, SocketThatSomebodyListensOnStays) {
    const UnixListener listener = listen();
    EXPECT_TRUE(mentions(refusal(), "cannot make the test's unix socket " + path_ + ": another process uses it"));
    const UniqueFd client = make_unix_socket(SOCK_SEQPACKET);
    EXPECT_EQ(connect_unix_socket(client.get(), path_), 0);
}

TEST_F(UnixListenerTest, SocketThatWasLeftBehindIsReplaced) {
    {
        std::optional<UnixListener> listener(std::in_place, path_, SOCK_SEQPACKET, "it", nullptr);
        std::filesystem::create_hard_link(path_, directory_ / "kept");
    }
    std::filesystem::rename(directory_ / "kept", path_);
    const UnixListener listener = listen();
    EXPECT_TRUE(mentions(warning_, "left behind by a process that has ended")) << warning_;
}

TEST_F(UnixListenerTest, OtherFileStays) {
    directory_.write("socket", "text");
    EXPECT_TRUE(mentions(refusal(), "that is no socket"));
    EXPECT_EQ(testing::content_of(path_), "text");
}

TEST_F(UnixListenerTest, SocketOfAnotherKindStays) {
    const UnixListener listener(path_, SOCK_STREAM, "it", nullptr);
    EXPECT_TRUE(mentions(refusal(), "cannot be told to be left behind"));
}

TEST_F(UnixListenerTest, PathsThatCannotBeAreRefused) {
    for (const std::string& path : {std::string(), std::string(108, 'x')}) {
        path_ = path;
        EXPECT_TRUE(mentions(refusal(), "1 to 107 bytes"));
    }
    path_ = "/nowhere/socket";
    EXPECT_TRUE(mentions(refusal(), "its directory has to exist"));
}

} // namespace
} // namespace vmm
