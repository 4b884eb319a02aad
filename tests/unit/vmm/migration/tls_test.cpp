// Connections with TLS, by the program vmm-tls and with certificates that `openssl` makes.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "kvm/host/event_fd.hpp"
#include "kvm/host/stoppable_read.hpp"
#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/vmm_migration_link.hpp"
#include "vmm/host/child_process.hpp"
#include "vmm/migration/tls_helper.hpp"

namespace vmm {
namespace {

using testing::content_of;
using testing::error_of;
using testing::make_link;
using testing::mentions;
using testing::MigrationLink;

/// Runs `script`; returns its output if it failed.
std::string shell_failure(const std::string& script) {
    const testing::TemporaryDirectory directory;
    const UniqueFd out(::open((directory / "out").c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    ChildProcess shell({.program = "sh", .arguments = {"sh", "-ec", script}, .out = out.get(), .errors = out.get()},
                       "run sh");
    return shell.wait() == 0 ? "" : content_of(directory / "out") + "(it failed)";
}

/// Directories of certificates.
class MigrationCertificates {
  public:
    MigrationCertificates() {
        why_ = shell_failure("cd " + root_.path().string() + R"(
authority() {
    mkdir "$1"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=$1" \
        -keyout "$1/ca-key.pem" -out "$1/ca-cert.pem"
}
# certificate AUTHORITY FOLDER FILE USE NAMES
certificate() {
    mkdir -p "$2"
    cp "$1/ca-cert.pem" "$2"
    printf 'extendedKeyUsage=%s\nsubjectAltName=%s\n' "$4" "$5" >extensions
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$3" \
        -keyout "$2/$3-key.pem" -out request
    openssl x509 -req -in request -CA "$1/ca-cert.pem" -CAkey "$1/ca-key.pem" -CAcreateserial -days 2 \
        -extfile extensions -out "$2/$3-cert.pem"
    chmod 600 "$2/$3-key.pem"
}
authority ours
authority others
for owner in ours others; do
    certificate $owner $owner-both server serverAuth DNS:localhost,IP:127.0.0.1
    certificate $owner $owner-both client clientAuth DNS:client
done
certificate ours elsewhere server serverAuth DNS:elsewhere.example,IP:192.0.2.1
mkdir swapped mismatched broken
cp ours-both/ca-cert.pem swapped
cp ours-both/server-cert.pem swapped/client-cert.pem
cp ours-both/server-key.pem swapped/client-key.pem
cp ours-both/* mismatched
cp ours-both/server-key.pem mismatched/client-key.pem
cp ours-both/* broken
echo nothing >broken/client-cert.pem
echo nothing >broken/ca-cert.pem
)");
    }
    [[nodiscard]] const std::string& why() const { return why_; }
    [[nodiscard]] MigrationSecurity in(const std::string& folder) const { return {.tls_directory = root_ / folder}; }

  private:
    testing::TemporaryDirectory root_;
    std::string why_;
};

class MigrationTlsTest : public ::testing::Test {
  protected:
    static void SetUpTestSuite() { certificates_ = std::make_unique<MigrationCertificates>(); }
    static void TearDownTestSuite() { certificates_.reset(); }

    void SetUp() override {
        ASSERT_EQ(certificates_->why(), "");
        listen("ours-both");
    }

    void listen(const std::string& folder, const std::string& address = "tcp:127.0.0.1:0") {
        listener_.emplace(MigrationAddress::parse(address), certificates_->in(folder), nullptr);
    }

    [[nodiscard]] MigrationLink link() { return make_link(*listener_, certificates_->in("ours-both")); }

    struct Refusals {
        std::string connecting;
        std::string listening;
    };
    /// The messages of both ends about a connection that fails.
    Refusals refusals(const std::string& folder, const std::string& host = "127.0.0.1") {
        MigrationAddress address = listener_->address();
        address.host = host;
        auto connecting = std::async(std::launch::async, [&] {
            return error_of(
                [&] { return connect_channel(address, certificates_->in(folder), -1, testing::kPatience); });
        });
        const std::string listening =
            error_of([&] { return listener_->establish(testing::take_caller(*listener_), -1, testing::kPatience); });
        return {connecting.get(), listening};
    }

    static std::unique_ptr<MigrationCertificates> certificates_;
    std::optional<MigrationListener> listener_;
};

std::unique_ptr<MigrationCertificates> MigrationTlsTest::certificates_;

/// Whether `channel` throws LinkError when it receives.
bool is_lost_when_receiving(Channel& channel) {
    std::byte byte{};
    try {
        channel.receive({&byte, 1});
    } catch (const LinkError&) {
        return true;
    }
    return false;
}

TEST_F(MigrationTlsTest, CarriesMuchBothWaysAtOnce) {
    MigrationLink link = this->link();
    EXPECT_FALSE(link.connecting->takes_descriptors());
    EXPECT_FALSE(link.connecting->peer_process());
    EXPECT_EQ(link.connecting->name(), to_string(listener_->address()));
    EXPECT_TRUE(link.listening->name().starts_with("tcp:127.0.0.1:"));
    const auto sent = testing::random_bytes(8UL << 20);
    std::vector<std::byte> there(sent.size());
    std::vector<std::byte> back(sent.size());
    const auto first = std::async(std::launch::async, [&] { link.listening->send(sent); });
    const auto second = std::async(std::launch::async, [&] { link.connecting->send(sent); });
    const auto third = std::async(std::launch::async, [&] { link.listening->receive(back); });
    link.connecting->receive(there);
    first.wait();
    second.wait();
    third.wait();
    EXPECT_TRUE(there == sent);
    EXPECT_TRUE(back == sent);
}

TEST_F(MigrationTlsTest, NameIsCheckedAsWell) {
    MigrationAddress address = listener_->address();
    address.host = "localhost";
    auto connecting = std::async(std::launch::async, [&] {
        return error_of(
            [&] { return connect_channel(address, certificates_->in("ours-both"), -1, testing::kPatience); });
    });
    EXPECT_NE(listener_->establish(testing::take_caller(*listener_), -1, testing::kPatience), nullptr);
    EXPECT_EQ(connecting.get(), "");
}

TEST_F(MigrationTlsTest, WhatWasSentBeforeTheEndArrives) {
    MigrationLink link = this->link();
    const auto sent = testing::random_bytes(300'000);
    auto sending = std::async(std::launch::async, [&] {
        link.connecting->send(sent);
        link.connecting.reset();
    });
    std::vector<std::byte> received(sent.size());
    link.listening->receive(received);
    EXPECT_TRUE(received == sent);
    sending.get();
    EXPECT_TRUE(is_lost_when_receiving(*link.listening));
}

TEST_F(MigrationTlsTest, WhoOnlySendsLearnsThatTheOtherEndIsGone) {
    MigrationLink link = this->link();
    link.listening.reset();
    const std::vector<std::byte> much(1UL << 20);
    const auto send_on = [&] {
        for (;;) {
            link.connecting->send(much);
        }
    };
    EXPECT_THROW(send_on(), LinkError);
}

TEST_F(MigrationTlsTest, ShutDownEndsTheWaitsOfBothEnds) {
    MigrationLink link = this->link();
    auto here = std::async(std::launch::async, [&] { return is_lost_when_receiving(*link.listening); });
    auto there = std::async(std::launch::async, [&] { return is_lost_when_receiving(*link.connecting); });
    link.listening->shut_down();
    EXPECT_TRUE(here.get());
    EXPECT_TRUE(there.get());
}

TEST_F(MigrationTlsTest, OtherAuthorityIsRefused) {
    const Refusals refusals = this->refusals("others-both");
    EXPECT_TRUE(mentions(refusals.connecting, "the certificate of the other end is not accepted: "))
        << refusals.connecting;
    EXPECT_TRUE(mentions(refusals.connecting, "others-both/ca-cert.pem")) << refusals.connecting;
    EXPECT_TRUE(mentions(refusals.listening, "the other end does not accept our certificate")) << refusals.listening;
}

TEST_F(MigrationTlsTest, OtherNameIsRefused) {
    listen("elsewhere");
    EXPECT_TRUE(mentions(refusals("ours-both").connecting, "is not for the name 127.0.0.1 (connect to a name"));
    EXPECT_TRUE(mentions(refusals("ours-both", "localhost").connecting, "is not for the name localhost"));
}

TEST_F(MigrationTlsTest, CertificateOfAServerIsNoClients) {
    const Refusals refusals = this->refusals("swapped");
    EXPECT_TRUE(mentions(refusals.listening, "the certificate of the other end is not accepted: "))
        << refusals.listening;
    EXPECT_TRUE(mentions(refusals.connecting, "the other end does not accept our certificate")) << refusals.connecting;
}

TEST_F(MigrationTlsTest, ClientWithoutACertificateIsRefused) {
    auto client = std::async(std::launch::async, [&] {
        return shell_failure("openssl s_client -connect 127.0.0.1:" + listener_->address().port +
                             " -verify_return_error -CAfile " + certificates_->in("ours-both").tls_directory +
                             "/ca-cert.pem </dev/null");
    });
    const std::string error =
        error_of([&] { return listener_->establish(testing::take_caller(*listener_), -1, testing::kPatience); });
    EXPECT_TRUE(mentions(error, "the other end has shown no certificate")) << error;
    client.wait();
}

TEST_F(MigrationTlsTest, OlderTlsIsRefused) {
    auto client = std::async(std::launch::async, [&] {
        return shell_failure("openssl s_client -tls1_2 -connect 127.0.0.1:" + listener_->address().port +
                             " </dev/null");
    });
    const std::string error =
        error_of([&] { return listener_->establish(testing::take_caller(*listener_), -1, testing::kPatience); });
    EXPECT_TRUE(mentions(error, "speaks no TLS 1.3")) << error;
    client.wait();
}

TEST_F(MigrationTlsTest, CallerThatSpeaksNoTlsIsRefused) {
    const auto plain = connect_channel(listener_->address(), {}, -1, testing::kPatience);
    const std::vector<std::byte> words(1000, std::byte{'w'});
    plain->send(words);
    const std::string error =
        error_of([&] { return listener_->establish(testing::take_caller(*listener_), -1, testing::kPatience); });
    EXPECT_TRUE(mentions(error, "cannot use TLS with tcp:127.0.0.1:")) << error;
    EXPECT_TRUE(mentions(error, "speaks no TLS 1.3")) << error;
}

TEST_F(MigrationTlsTest, ListenerThatSpeaksNoTlsIsRefused) {
    MigrationListener plain(MigrationAddress::parse("tcp:127.0.0.1:0"), {}, nullptr);
    auto connecting = std::async(std::launch::async, [&] {
        return error_of(
            [&] { return connect_channel(plain.address(), certificates_->in("ours-both"), -1, testing::kPatience); });
    });
    const auto channel = plain.establish(testing::take_caller(plain), -1, testing::kPatience);
    const std::vector<std::byte> words(1000, std::byte{'w'});
    channel->send(words);
    EXPECT_TRUE(mentions(connecting.get(), "speaks no TLS 1.3"));
}

TEST_F(MigrationTlsTest, OtherEndThatGoesAwayIsAnError) {
    connect_channel(listener_->address(), {}, -1, testing::kPatience).reset();
    const std::string error =
        error_of([&] { return listener_->establish(testing::take_caller(*listener_), -1, testing::kPatience); });
    EXPECT_TRUE(mentions(error, "the other end has closed the connection")) << error;
}

TEST_F(MigrationTlsTest, SilenceEndsWithPatience) {
    const auto silent = connect_channel(listener_->address(), {}, -1, testing::kPatience);
    const std::string error = error_of(
        [&] { return listener_->establish(testing::take_caller(*listener_), -1, std::chrono::milliseconds(50)); });
    EXPECT_TRUE(mentions(error, "the other end did not answer in time")) << error;
    // Nobody accepts this connection. On a busy host it does not even reach TLS.
    EXPECT_NE(error_of([&] {
                  return connect_channel(listener_->address(), certificates_->in("ours-both"), -1,
                                         std::chrono::milliseconds(50));
              }),
              "");
}

TEST_F(MigrationTlsTest, StopEndsTheHandshake) {
    const auto silent = connect_channel(listener_->address(), {}, -1, testing::kPatience);
    const EventFd stop;
    auto establishing = std::async(std::launch::async, [&] {
        return listener_->establish(testing::take_caller(*listener_), stop.fd(), testing::kPatience);
    });
    stop.signal();
    EXPECT_THROW(establishing.get(), StoppedError);
}

TEST_F(MigrationTlsTest, FilesThatAreMissingAreToldBeforeAnybodyIsCalled) {
    const testing::TemporaryDirectory empty;
    const MigrationSecurity security{.tls_directory = empty.path()};
    EXPECT_TRUE(
        mentions(error_of([&] { return connect_channel(listener_->address(), security, -1, testing::kPatience); }),
                 "ca-cert.pem: No such file or directory (who listens needs"));
    EXPECT_FALSE(listener_->take().has_value());
    EXPECT_TRUE(mentions(
        error_of([&] { return MigrationListener(MigrationAddress::parse("tcp:127.0.0.1:0"), security, nullptr).fd(); }),
        "ca-cert.pem"));
}

TEST_F(MigrationTlsTest, FilesThatAreNoCertificatesOrKeysAreNamed) {
    EXPECT_TRUE(mentions(refusals("broken").connecting, "there is no certificate in "));
    EXPECT_TRUE(mentions(refusals("mismatched").connecting, "mismatched/client-key.pem that belongs to"));
}

/// A handshake made by the test on both ends of a TCP connection.
struct MigrationHelpers {
    MigrationHelpers(MigrationListener& listener, const MigrationSecurity& security) {
        std::unique_ptr<Channel> plain = connect_channel(listener.address(), {}, -1, testing::kPatience);
        UniqueFd connecting_socket(::fcntl(plain->fd(), F_DUPFD_CLOEXEC, 0));
        plain.reset();
        auto caller = testing::take_caller(listener);
        auto started = std::async(std::launch::async, [&] {
            return std::make_unique<TlsHelper>(security.tls_directory,
                                               TlsHelper::Request{.listens = true, .peer = "the test"},
                                               std::move(caller.socket), -1, give_up_after(testing::kPatience));
        });
        connecting = std::make_unique<TlsHelper>(security.tls_directory,
                                                 TlsHelper::Request{.expected_name = "localhost", .peer = "the test"},
                                                 std::move(connecting_socket), -1, give_up_after(testing::kPatience));
        listening = started.get();
    }

    std::unique_ptr<TlsHelper> listening;
    std::unique_ptr<TlsHelper> connecting;
};

TEST_F(MigrationTlsTest, HelperThatIsKilledIsALostLink) {
    MigrationHelpers helpers(*listener_, certificates_->in("ours-both"));
    const pid_t pid = helpers.connecting->pid();
    UniqueFd connecting_end = helpers.connecting->take_plain_end();
    UniqueFd listening_end = helpers.listening->take_plain_end();
    Channel here(std::move(connecting_end), "here", -1, std::move(helpers.connecting));
    Channel there(std::move(listening_end), "there", -1, std::move(helpers.listening));
    here.set_patience(testing::kPatience);
    there.set_patience(testing::kPatience);
    ASSERT_EQ(::kill(pid, SIGKILL), 0);
    EXPECT_TRUE(is_lost_when_receiving(here));
    EXPECT_TRUE(is_lost_when_receiving(there));
}

TEST_F(MigrationTlsTest, HelperHasItsSocketsAndNothingElse) {
    MigrationHelpers helpers(*listener_, certificates_->in("ours-both"));
    const std::string process = "/proc/" + std::to_string(helpers.listening->pid());
    const std::string status = content_of(process + "/status");
    EXPECT_TRUE(mentions(status, "NoNewPrivs:\t1"));
    EXPECT_TRUE(mentions(status, "CapEff:\t0000000000000000"));
#ifndef VMM_SANITIZED
    EXPECT_TRUE(mentions(status, "Seccomp:\t2"));
#endif
    std::error_code hidden; // Its own user does not see them; only root does.
    std::size_t count = 0;
    for (auto entry = std::filesystem::directory_iterator(process + "/fd", hidden);
         !hidden && entry != std::filesystem::directory_iterator(); entry.increment(hidden)) {
        ++count;
    }
    if (!hidden) {
        EXPECT_EQ(count, 4U);
    }
}

TEST_F(MigrationTlsTest, HelperEndsWithItsPlainEnd) {
    MigrationHelpers helpers(*listener_, certificates_->in("ours-both"));
    const pid_t pid = helpers.listening->pid();
    helpers.listening->take_plain_end().reset();
    siginfo_t info{};
    ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT), 0);
    EXPECT_EQ(info.si_code, CLD_EXITED);
    EXPECT_EQ(info.si_status, 0);
}

TEST_F(MigrationTlsTest, NoHelperIsLeft) {
    const pid_t pid = [this] {
        MigrationHelpers helpers(*listener_, certificates_->in("ours-both"));
        helpers.listening->abandon();
        helpers.connecting->abandon();
        return helpers.listening->pid();
    }();
    siginfo_t info{};
    EXPECT_NE(::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOHANG), 0);
}

TEST(MigrationTlsProgram, SaysHowItIsUsed) {
    EXPECT_TRUE(mentions(shell_failure(tls_program().string() + " elsewhere"), "usage: vmm-tls connect|listen"));
}

} // namespace
} // namespace vmm
