#include "vmm/migration/reception.hpp"

#include <gtest/gtest.h>
#include <poll.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/host_waiting.hpp"
#include "support/vmm_migration_ends.hpp"

namespace vmm {
namespace {

using testing::eventually;
using testing::kPatience;
using testing::mentions;
using testing::message_header;

class MigrationReception : public ::testing::Test {
  protected:
    void open(std::chrono::milliseconds patience = kPatience) {
        const MigrationAddress address{.kind = MigrationAddress::Kind::kUnix, .path = directory_ / "guest"};
        reception_.emplace(
            address, MigrationSecurity{},
            [this](const std::string& line) {
                const std::lock_guard hold(lock_);
                warnings_.push_back(line);
            },
            patience);
    }

    std::unique_ptr<Channel> connect() const {
        auto channel = connect_channel(reception_->address(), {}, -1, kPatience);
        channel->set_patience(kPatience);
        return channel;
    }
    /// Connects and declares itself as the stream `index`.
    std::unique_ptr<Channel> visit(std::uint32_t index) const {
        auto channel = connect();
        send_message(*channel, MessageType::kStream, encode(Stream{{}, index % kMostStreams, index}));
        return channel;
    }
    /// The number that the next visitor sends. Waits for the visitor.
    std::uint32_t next() {
        std::optional<Reception::Visitor> visitor;
        if (!eventually([&] { return (visitor = reception_->take()).has_value(); })) {
            return 0xffffffff;
        }
        return decode<Stream>(visitor->first).attempt;
    }
    /// True if the other end closes the connection.
    static bool is_sent_away(Channel& channel) {
        std::array<std::byte, 1> byte{};
        try {
            channel.receive(byte);
        } catch (const LinkError& error) {
            return !mentions(error.what(), "not a byte");
        }
        return false;
    }
    bool is_warned_of(const std::string& what) const {
        return eventually([&] {
            const std::lock_guard hold(lock_);
            return std::ranges::any_of(warnings_, [&](const std::string& line) { return mentions(line, what); });
        });
    }

    testing::TemporaryDirectory directory_;
    mutable std::mutex lock_;
    std::vector<std::string> warnings_;
    std::optional<Reception> reception_;
};

TEST_F(MigrationReception, AVisitorComesWithWhatTheySay) {
    open();
    EXPECT_FALSE(reception_->take());
    const auto channel = visit(5);
    pollfd readable{reception_->fd(), POLLIN, 0};
    ASSERT_EQ(::poll(&readable, 1, std::chrono::milliseconds(kPatience).count()), 1);
    auto visitor = reception_->take();
    ASSERT_TRUE(visitor);
    EXPECT_EQ(visitor->first.type, MessageType::kStream);
    EXPECT_EQ(::poll(&readable, 1, 0), 0);
    EXPECT_FALSE(reception_->take());
    // The accepted ones can go on sending.
    send_message(*visitor->channel, MessageType::kWelcome, encode(Welcome{7}));
    EXPECT_EQ(decode<Welcome>(receive_message(*channel)).protocol, 7U);
}

TEST_F(MigrationReception, VisitorsAreTakenOneByOne) {
    open();
    std::vector<std::unique_ptr<Channel>> channels;
    for (std::uint32_t index = 0; index < 20; ++index) {
        channels.push_back(visit(index));
        EXPECT_EQ(next(), index);
    }
}

TEST_F(MigrationReception, WhoeverIsSilentKeepsNobodyWaiting) {
    open();
    const std::vector<std::byte> header = message_header(1, 500, 0);
    std::vector<std::unique_ptr<Channel>> silent;
    for (int i = 0; i < 40; ++i) {
        silent.push_back(connect());
        if (i % 2 == 0) { // some send a part of it
            silent.back()->send(std::span(header).first(7));
        }
        if (i % 3 == 0) {
            silent.back()->send(header);
        }
    }
    const auto channel = visit(7);
    EXPECT_EQ(next(), 7U);
}

TEST_F(MigrationReception, WhoeverIsSilentForTooLongIsSentAway) {
    open(std::chrono::milliseconds(200));
    const auto silent = connect();
    const auto halfway = connect();
    halfway->send(message_header(1, 500, 0));
    EXPECT_TRUE(is_sent_away(*silent));
    EXPECT_TRUE(is_sent_away(*halfway));
    EXPECT_TRUE(is_warned_of("it has taken longer than it may"));
}

TEST_F(MigrationReception, AByteNowAndThenIsNotEnough) {
    open(std::chrono::milliseconds(500));
    const auto slow = connect();
    slow->send(message_header(1, 1'000'000, 0));
    EXPECT_TRUE(eventually([&] { // it waits each time, and longer than the whole message takes
        try {
            slow->send(std::array<std::byte, 1>{});
        } catch (const LinkError&) {
            return true;
        }
        return false;
    }));
    EXPECT_TRUE(is_warned_of("it has taken longer than it may"));
}

TEST_F(MigrationReception, WhoeverSaysSomethingElseIsSentAway) {
    open();
    const auto http = connect();
    http->send(std::as_bytes(std::span(std::string_view("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))));
    EXPECT_TRUE(is_sent_away(*http));
    EXPECT_TRUE(is_warned_of("is no migration"));

    // No memory is allocated for a state that nobody has asked for.
    const auto state = connect();
    state->send(message_header(static_cast<std::uint32_t>(MessageType::kFirstState), 64U << 20U, 0));
    EXPECT_TRUE(is_sent_away(*state));
    EXPECT_TRUE(is_warned_of("cannot be the first"));

    const auto large = connect();
    large->send(message_header(static_cast<std::uint32_t>(MessageType::kHello), 64U << 20U, 0));
    EXPECT_TRUE(is_sent_away(*large));
    EXPECT_TRUE(is_warned_of("with 67108864 bytes"));

    const auto changed = connect();
    changed->send(message_header(static_cast<std::uint32_t>(MessageType::kStream), 4, 12345));
    changed->send(std::array<std::byte, 4>{});
    EXPECT_TRUE(is_sent_away(*changed));
    EXPECT_TRUE(is_warned_of("was changed on its way"));

    const auto channel = visit(8);
    EXPECT_EQ(next(), 8U);
}

TEST_F(MigrationReception, AFloodIsServedAndSoAreThoseAfterIt) {
    open();
    std::thread flood([this] {
        std::vector<std::unique_ptr<Channel>> channels; // at most so many of our connections are open
        for (std::uint32_t index = 0; index < 200; ++index) {
            channels.push_back(visit(index));
        }
    });
    std::vector<bool> came(200);
    for (int i = 0; i < 200; ++i) {
        const std::uint32_t index = next();
        ASSERT_LT(index, came.size());
        came[index] = true;
    }
    flood.join();
    EXPECT_EQ(std::ranges::count(came, true), 200);

    // Clients that say nothing and leave again make room for others.
    for (int i = 0; i < 200; ++i) {
        connect().reset();
    }
    const auto channel = visit(9);
    EXPECT_EQ(next(), 9U);
}

TEST_F(MigrationReception, ThoseWhoAreNotTakenDoNotMakeItTakeMore) {
    open();
    std::thread flood([this] {
        for (std::uint32_t index = 0; index < 3 * Reception::kMostVisitors; ++index) {
            static_cast<void>(visit(index)); // and gone again
        }
    });
    // No connection is taken before a client has come.
    EXPECT_TRUE(eventually([&] {
        pollfd readable{reception_->fd(), POLLIN, 0};
        return ::poll(&readable, 1, 0) == 1;
    }));
    for (std::uint32_t i = 0; i < 3 * Reception::kMostVisitors; ++i) {
        EXPECT_LT(next(), 3 * Reception::kMostVisitors);
    }
    flood.join();
    EXPECT_FALSE(reception_->take());
}

TEST_F(MigrationReception, ClosingSendsEverybodyAway) {
    open();
    std::vector<std::unique_ptr<Channel>> channels;
    for (std::uint32_t i = 0; i < 30; ++i) {
        channels.push_back(i % 3 == 0 ? visit(i) : connect());
        if (i % 3 == 1) {
            channels.back()->send(message_header(1, 500, 0));
        }
    }
    reception_.reset();
    for (const auto& channel : channels) {
        EXPECT_TRUE(is_sent_away(*channel));
    }
    EXPECT_FALSE(std::filesystem::exists(directory_ / "guest"));
}

TEST_F(MigrationReception, ClosingWhileOthersConnectEnds) {
    for (int turn = 0; turn < 5; ++turn) {
        open();
        const MigrationAddress address = reception_->address();
        std::atomic<bool> over = false;
        std::vector<std::thread> threads;
        for (int i = 0; i < 3; ++i) {
            threads.emplace_back([&, i] {
                while (!over) {
                    try {
                        const auto channel = connect_channel(address, {}, -1, kPatience);
                        if (i != 0) {
                            send_message(*channel, MessageType::kStream, encode(Stream{{}, 1, 1}));
                        }
                    } catch (const Error&) { // it is closed
                    }
                }
            });
        }
        EXPECT_EQ(next(), 1U);
        reception_.reset();
        over = true;
        for (std::thread& thread : threads) {
            thread.join();
        }
    }
}

} // namespace
} // namespace vmm
