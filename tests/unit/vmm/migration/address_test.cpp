#include "vmm/migration/address.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <string_view>

#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "vmm/migration/endpoints.hpp"

namespace vmm {
namespace {

using testing::error_of;
using testing::mentions;

std::string parse_error(std::string_view text) {
    return error_of([&] { return MigrationAddress::parse(text); });
}

std::string check_error(std::string_view address, const MigrationSecurity& security, bool listens = false) {
    return error_of([&] {
        security.check(MigrationAddress::parse(address), listens);
        return 0;
    });
}

TEST(MigrationAddress, UnixSocketIsAPath) {
    const MigrationAddress address = MigrationAddress::parse("unix:/run/guest.sock");
    EXPECT_EQ(address, (MigrationAddress{.kind = MigrationAddress::Kind::kUnix, .path = "/run/guest.sock"}));
    EXPECT_EQ(to_string(address), "unix:/run/guest.sock");
    EXPECT_EQ(MigrationAddress::parse("unix:a:b").path, "a:b");
}

TEST(MigrationAddress, TcpIsAHostAndAPort) {
    const MigrationAddress address = MigrationAddress::parse("tcp:host-2.example:4444");
    EXPECT_EQ(address,
              (MigrationAddress{.kind = MigrationAddress::Kind::kTcp, .host = "host-2.example", .port = "4444"}));
    for (const std::string text : {"tcp:host-2.example:4444", "tcp:192.0.2.1:0", "tcp:[2001:db8::1]:65535",
                                   "tcp:[fe80::1%eth0]:1", "tcp:[::ffff:192.0.2.1]:80"}) {
        EXPECT_EQ(to_string(MigrationAddress::parse(text)), text);
    }
    EXPECT_EQ(MigrationAddress::parse("tcp:[::1]:080").host, "::1");
    EXPECT_EQ(MigrationAddress::parse("tcp:[::1]:080").port, "80");
}

TEST(MigrationAddress, OtherTextIsRefusedWithTheReason) {
    EXPECT_EQ(parse_error("/run/guest.sock"),
              "cannot use '/run/guest.sock' as the address of a migration: it begins with neither unix: nor tcp: "
              "(write unix:PATH, tcp:HOST:PORT or tcp:[IPV6]:PORT)");
    EXPECT_TRUE(mentions(parse_error(""), "neither unix: nor tcp:"));
    EXPECT_TRUE(mentions(parse_error("unix:"), "0 bytes of path"));
    EXPECT_EQ(parse_error("unix:" + std::string(107, 'x')), "");
    EXPECT_TRUE(mentions(parse_error("unix:" + std::string(108, 'x')), "1 to 107"));
    EXPECT_TRUE(mentions(parse_error(std::string_view("unix:a\0b", 8)), "NUL"));
    EXPECT_TRUE(mentions(parse_error("tcp:host"), "there is no port"));
    EXPECT_TRUE(mentions(parse_error("tcp::4444"), "there is no host"));
    EXPECT_TRUE(mentions(parse_error("tcp:2001:db8::1:4444"), "the host has a colon in it"));
    EXPECT_TRUE(mentions(parse_error("tcp:[2001:db8::1]"), "no port behind the brackets"));
    EXPECT_TRUE(mentions(parse_error("tcp:[localhost]:1"), "no IPv6 address"));
    EXPECT_TRUE(mentions(parse_error("tcp:[fe80::1%]:1"), "no IPv6 address"));
    EXPECT_TRUE(mentions(parse_error("tcp:[fe80::1%a/b]:1"), "no IPv6 address"));
    for (const std::string host : {"-h", "a b", "a;b", "a/b"}) {
        EXPECT_TRUE(mentions(parse_error("tcp:" + host + ":1"), "cannot be a host's name")) << host;
    }
    EXPECT_TRUE(mentions(parse_error("tcp:" + std::string(254, 'x') + ":1"), "at most 253"));
    for (const std::string port : {"", "+1", "-1", " 1", "1 ", "0x1", "65536", "99999999999999999999", "http"}) {
        EXPECT_TRUE(mentions(parse_error("tcp:host:" + port), "is no port")) << port;
    }
}

TEST(MigrationSecurity, LoopbackAndUnixSocketsNeedNothing) {
    for (const std::string_view address : {"unix:/run/guest.sock", "tcp:localhost:1", "tcp:127.0.0.1:1",
                                           "tcp:127.255.0.9:1", "tcp:[::1]:1", "tcp:[::ffff:127.0.0.1]:1"}) {
        EXPECT_EQ(check_error(address, {}), "") << address;
    }
}

TEST(MigrationSecurity, TcpThatLeavesTheHostIsProtectedOrDeclaredInsecure) {
    for (const std::string_view address : {"tcp:0.0.0.0:1", "tcp:192.0.2.1:1", "tcp:[::]:1", "tcp:[2001:db8::1]:1",
                                           "tcp:example.org:1", "tcp:[::ffff:192.0.2.1]:1", "tcp:localhost.org:1"}) {
        EXPECT_TRUE(mentions(check_error(address, {}), "everybody between the hosts")) << address;
        EXPECT_EQ(check_error(address, {.insecure = true}), "") << address;
    }
}

TEST(MigrationSecurity, UnixSocketHasNoTls) {
    EXPECT_TRUE(mentions(check_error("unix:/run/a", {.tls_directory = "/etc/vmm"}), "a unix socket has no TLS"));
}

class MigrationTlsFilesTest : public ::testing::Test {
  protected:
    void write(const std::string& name, ::mode_t mode) { ::chmod(directory_.write(name, "text").c_str(), mode); }
    [[nodiscard]] std::string refusal(bool listens) const {
        return check_error("tcp:192.0.2.1:1", {.tls_directory = directory_.path()}, listens);
    }

    testing::TemporaryDirectory directory_;
};

TEST_F(MigrationTlsFilesTest, EachEndNeedsItsOwn) {
    EXPECT_TRUE(mentions(refusal(false), "ca-cert.pem: No such file"));
    write("ca-cert.pem", 0644);
    EXPECT_TRUE(mentions(refusal(false), "client-cert.pem: No such file")) << refusal(false);
    EXPECT_TRUE(mentions(refusal(true), "server-cert.pem: No such file"));
    write("client-cert.pem", 0644);
    EXPECT_TRUE(mentions(refusal(false), "client-key.pem: No such file"));
    write("client-key.pem", 0600);
    EXPECT_EQ(refusal(false), "");
    EXPECT_NE(refusal(true), "");
    write("server-cert.pem", 0644);
    write("server-key.pem", 0400);
    EXPECT_EQ(refusal(true), "");
}

TEST_F(MigrationTlsFilesTest, KeyOfOthersIsRefused) {
    for (const char* const name : {"ca-cert.pem", "server-cert.pem"}) {
        write(name, 0666);
    }
    for (const ::mode_t mode : {0640U, 0604U, 0620U}) {
        write("server-key.pem", mode);
        EXPECT_TRUE(mentions(refusal(true), "(`chmod 600 " + directory_ / "server-key.pem`)")) << refusal(true);
    }
}

TEST_F(MigrationTlsFilesTest, WhatIsNoFileOrCannotBeReadIsRefused) {
    std::filesystem::create_directory(directory_ / "ca-cert.pem");
    EXPECT_TRUE(mentions(refusal(true), "it is no file"));
    std::filesystem::remove(directory_ / "ca-cert.pem");
    ASSERT_EQ(::mkfifo((directory_ / "ca-cert.pem").c_str(), 0600), 0);
    EXPECT_TRUE(mentions(refusal(true), "it is no file"));
    if (::geteuid() == 0) {
        GTEST_SKIP() << "root reads every file";
    }
    std::filesystem::remove(directory_ / "ca-cert.pem");
    write("ca-cert.pem", 0);
    EXPECT_TRUE(mentions(refusal(true), "Permission denied"));
}

MigrationAddress tcp_at(const std::string& host) {
    return {.kind = MigrationAddress::Kind::kTcp, .host = host, .port = "4444"};
}

TEST(MigrationEndpoints, NumbersAndLocalhostAreKnownWithoutAsking) {
    const auto v4 = resolve(tcp_at("192.0.2.1"), -1, give_up_after({}));
    ASSERT_EQ(v4.size(), 1U);
    EXPECT_EQ(v4[0].host(), "192.0.2.1");
    EXPECT_EQ(v4[0].port(), 4444);
    EXPECT_FALSE(v4[0].is_loopback());
    const auto v6 = resolve(tcp_at("fe80::1%7"), -1, give_up_after({}));
    ASSERT_EQ(v6.size(), 1U);
    EXPECT_EQ(v6[0].host(), "fe80::1%7");
    EXPECT_EQ(resolve(tcp_at("fe80::1%lo"), -1, give_up_after({}))[0].host(), "fe80::1%1");
    const auto both = resolve(tcp_at("localhost"), -1, give_up_after({}));
    ASSERT_EQ(both.size(), 2U);
    EXPECT_TRUE(both[0].is_loopback());
    EXPECT_TRUE(both[1].is_loopback());
    EXPECT_EQ(both[1].host(), "::1");
}

TEST(MigrationEndpoints, OtherNamesAreLookedUp) {
    // The answer of the C library's name service without a network: /etc/hosts has the name, or it is synthesised.
    const auto found = resolve(tcp_at("LOCALHOST"), -1, give_up_after(std::chrono::minutes(5)));
    ASSERT_FALSE(found.empty());
    for (const Endpoint& endpoint : found) {
        EXPECT_TRUE(endpoint.is_loopback()) << endpoint.host();
        EXPECT_EQ(endpoint.port(), 4444);
    }
    EXPECT_TRUE(
        mentions(error_of([] {
                     return resolve(tcp_at("no-such-host.invalid"), -1, give_up_after(std::chrono::minutes(5))).size();
                 }),
                 "cannot look up the address of no-such-host.invalid: nobody knows that name"));
}

TEST(MigrationEndpoints, NameMayLeadElsewhereThanItLooks) {
    const auto check = [](const MigrationSecurity& security) {
        return error_of([&] {
            check_protected(security, tcp_at("trusted"), *Endpoint::from_numbers("192.0.2.1", 4444));
            return 0;
        });
    };
    EXPECT_TRUE(mentions(check({}), "cannot use tcp:trusted:4444, which is 192.0.2.1, for a migration")) << check({});
    EXPECT_EQ(check({.insecure = true}), "");
    EXPECT_EQ(check({.tls_directory = "/etc/vmm"}), "");
}

TEST(MigrationEndpoints, PatienceEndsWhenItSays) {
    EXPECT_EQ(poll_milliseconds(give_up_after(std::chrono::milliseconds(-5))), 0);
    EXPECT_EQ(poll_milliseconds(give_up_after(std::chrono::milliseconds::max())), -1);
    EXPECT_GT(poll_milliseconds(give_up_after(std::chrono::hours(1))), 0);
    EXPECT_EQ(in_words(std::chrono::milliseconds(250)), "250 ms");
    EXPECT_EQ(in_words(std::chrono::seconds(10)), "10 s");
}

} // namespace
} // namespace vmm
