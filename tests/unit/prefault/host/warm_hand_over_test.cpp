// A pool and its clients, honest and dishonest ones, over a pair of sockets.

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <future>
#include <string>
#include <vector>

#include "prefault/host/warm_memory.hpp"
#include "prefault/host/warm_server.hpp"
#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/host_waiting.hpp"
#include "support/prefault_stop.hpp"
#include "support/prefault_warm.hpp"

namespace vmm::prefault {
namespace {

using namespace std::chrono_literals;
using testing::Connection;
using testing::duplicate;
using testing::kWarmPiece;
using testing::make_connection;
using testing::make_memfd;
using testing::make_warm_piece;
using testing::request_for;
using vmm::testing::error_of;
using vmm::testing::mentions;

WarmRequest wanted(std::uint64_t bytes, bool may_be_less = false) {
    WarmRequest request{.path = "/run/test.pool", .page_size = PageSize::k4K, .shares = {{.bytes = bytes}}};
    request.may_be_less = may_be_less;
    request.patience = vmm::testing::kPatience;
    return request;
}

template <typename Message>
void send(int socket, const Message& message, int fd = -1) {
    ASSERT_EQ(warm::send_packet(socket, warm::bytes_of(message), fd), 0);
}

// ---- An honest pool, and its clients

class WarmServerTest : public ::testing::Test {
  protected:
    void fill(std::size_t pieces) {
        for (std::size_t i = 0; i < pieces; ++i) {
            stock_.put(make_warm_piece());
        }
    }

    /// The client's end of a connection to the pool.
    UniqueFd connect() {
        Connection ends = make_connection();
        server_.add(std::move(ends.pool));
        return std::move(ends.client);
    }

    /// Takes memory as a guest does, while the pool serves.
    WarmMemory take(const WarmRequest& request) {
        const UniqueFd client = connect();
        auto taken = std::async(std::launch::async, [&] { return take_warm_memory_from(client.get(), request); });
        serve();
        return taken.get();
    }

    /// Serves until no connection is left.
    void serve() {
        while (server_.connections() != 0) {
            server_.turn(-1, -1, -1);
        }
    }

    [[nodiscard]] std::string problem() const { return served_.empty() ? "nobody came" : served_.back().problem; }

    WarmServer::Clock::time_point now_{100s};
    WarmStock stock_{PageSize::k4K, kWarmPiece, {{std::nullopt, 4}}};
    std::vector<WarmServer::Served> served_;
    WarmServer server_{stock_,
                       {.own_user = ::geteuid(),
                        .served = [this](const WarmServer::Served& served) { served_.push_back(served); },
                        .now = [this] { return now_; }}};
};

TEST_F(WarmServerTest, ClientGetsWhatItWants) {
    fill(2);
    WarmMemory memory = take(wanted(2 * kWarmPiece));
    EXPECT_EQ(memory.bytes, 2 * kWarmPiece);
    ASSERT_EQ(memory.parts.size(), 2U);
    EXPECT_EQ(memory.short_because, "");
    EXPECT_EQ(stock_.ready_pieces(), 0U);
    EXPECT_EQ(problem(), "");
    for (WarmMemory::Part& part : memory.parts) {
        const Mapping mapping = Mapping::shared_file(part.piece.fd(), part.bytes, "test");
        part.piece.claim();
        EXPECT_EQ(mapping.data()[part.bytes - 1], std::byte{0});
    }
}

TEST_F(WarmServerTest, LastPieceIsCut) {
    fill(2);
    const WarmMemory memory = take(wanted(kWarmPiece + 8192));
    ASSERT_EQ(memory.parts.size(), 2U);
    EXPECT_EQ(memory.parts[1].piece.bytes(), 8192U);
    EXPECT_EQ(memory.bytes, kWarmPiece + 8192);
}

TEST_F(WarmServerTest, SharesAreFilledOneByOne) {
    fill(3);
    WarmRequest request = wanted(kWarmPiece);
    request.shares.push_back({.bytes = kWarmPiece + 4096});
    const WarmMemory memory = take(request);
    ASSERT_EQ(memory.parts.size(), 3U);
    EXPECT_EQ(memory.parts[0].share, 0U);
    EXPECT_EQ(memory.parts[1].share, 1U);
    EXPECT_EQ(memory.parts[2].bytes, 4096U);
}

TEST_F(WarmServerTest, NoTwoClientsGetTheSame) {
    fill(2);
    WarmMemory one = take(wanted(kWarmPiece));
    WarmMemory other = take(wanted(kWarmPiece));
    const Mapping of_one = Mapping::shared_file(one.parts[0].piece.fd(), kWarmPiece, "test");
    const Mapping of_other = Mapping::shared_file(other.parts[0].piece.fd(), kWarmPiece, "test");
    one.parts[0].piece.claim();
    other.parts[0].piece.claim();
    of_one.data()[0] = std::byte{1};
    EXPECT_EQ(of_other.data()[0], std::byte{0});
}

TEST_F(WarmServerTest, PoolThatIsShortRefusesAndKeepsWhatItHas) {
    fill(1);
    const std::string error = error_of([&] { return take(wanted(2 * kWarmPiece)).bytes; });
    EXPECT_TRUE(mentions(error, "cannot take 4 MiB of 4K pages from the pool at /run/test.pool: it has 2 MiB ready"))
        << error;
    EXPECT_TRUE(mentions(error, "Config::memory_from.fallback")) << error;
    EXPECT_EQ(stock_.ready_pieces(), 1U);
}

TEST_F(WarmServerTest, PoolThatIsShortGivesWhatItHasIfThatWillDo) {
    fill(1);
    const WarmMemory memory = take(wanted(2 * kWarmPiece, true));
    EXPECT_EQ(memory.bytes, kWarmPiece);
    EXPECT_TRUE(mentions(memory.short_because, "it has 2 MiB ready")) << memory.short_because;
    EXPECT_EQ(take(wanted(kWarmPiece, true)).bytes, 0U);
}

TEST_F(WarmServerTest, OtherPageSizeIsNamed) {
    fill(1);
    WarmRequest request = wanted(kWarmPiece, true);
    request.page_size = PageSize::k2M;
    const std::string error = error_of([&] { return take(request).bytes; });
    EXPECT_TRUE(mentions(error, "it has 4K pages (take Config::page_size=4K)")) << error;
    EXPECT_EQ(stock_.ready_pieces(), 1U);
}

TEST_F(WarmServerTest, NodeWithoutMemoryIsAnError) {
    fill(1);
    WarmRequest request = wanted(kWarmPiece, true);
    request.shares[0].node = 7;
    EXPECT_TRUE(mentions(error_of([&] { return take(request).bytes; }), "MemoryPoolConfig::split_over_nodes=true"));
}

TEST_F(WarmServerTest, ClientThatLiesAboutSizesGetsNothing) {
    fill(1);
    for (const std::uint64_t bytes : {std::uint64_t{0}, std::uint64_t{123}, std::uint64_t{UINT64_MAX}}) {
        const UniqueFd client = connect();
        send(client.get(), request_for(bytes));
        serve();
        EXPECT_EQ(problem(), "what it sent is no request");
    }
    EXPECT_EQ(stock_.ready_pieces(), 1U);
}

TEST_F(WarmServerTest, ClientThatSendsGarbageGetsNothing) {
    fill(1);
    const UniqueFd client = connect();
    const std::string text(5000, 'x');
    ASSERT_EQ(::send(client.get(), text.data(), text.size(), 0), 5000);
    serve();
    EXPECT_EQ(problem(), "what it sent is no request");
    EXPECT_EQ(stock_.ready_pieces(), 1U);
}

TEST_F(WarmServerTest, ClientThatSendsDescriptorsLosesThem) {
    fill(1);
    const UniqueFd file = make_memfd(4096, 0);
    const UniqueFd client = connect();
    send(client.get(), request_for(kWarmPiece), file.get());
    serve();
    EXPECT_EQ(problem(), "");
}

TEST_F(WarmServerTest, OtherVersionIsTold) {
    const UniqueFd client = connect();
    warm::Request request = request_for(kWarmPiece);
    request.header.version = 99;
    send(client.get(), request);
    serve();
    EXPECT_EQ(problem(), "it is of another version");
}

TEST_F(WarmServerTest, SilentClientIsLeftWhenItsTimeIsUp) {
    const UniqueFd silent = connect();
    server_.turn(-1, -1, 0);
    EXPECT_EQ(server_.connections(), 1U);
    now_ += WarmServer::kPatience;
    server_.turn(-1, -1, 0);
    EXPECT_EQ(server_.connections(), 0U);
    EXPECT_EQ(problem(), "it said nothing");
}

TEST_F(WarmServerTest, SilentClientsDoNotKeepOthersWaiting) {
    fill(1);
    std::vector<UniqueFd> silent;
    for (std::size_t i = 0; i < WarmServer::kMostConnections; ++i) {
        silent.push_back(connect());
    }
    const UniqueFd client = connect();
    EXPECT_EQ(server_.connections(), WarmServer::kMostConnections);
    EXPECT_EQ(problem(), "too many others came");
    send(client.get(), request_for(kWarmPiece));
    server_.turn(-1, -1, -1);
    EXPECT_EQ(problem(), "");
    EXPECT_EQ(stock_.ready_pieces(), 0U);
}

TEST_F(WarmServerTest, ClientThatHangsInTheMiddleKeepsOnlyWhatWasSent) {
    constexpr std::uint64_t kSmallPiece = 4096;
    constexpr std::size_t kPieces = 100; // more than there is room for
    WarmStock stock(PageSize::k4K, kSmallPiece, {{std::nullopt, kPieces}});
    for (std::size_t i = 0; i < kPieces; ++i) {
        stock.put(make_warm_piece(kSmallPiece));
    }
    WarmServer server(stock, {.own_user = ::geteuid(),
                              .served = [this](const WarmServer::Served& served) { served_.push_back(served); },
                              .now = [this] { return now_; }});
    Connection ends = make_connection();
    const int little = 1; // The kernel uses the smallest possible size.
    ASSERT_EQ(::setsockopt(ends.pool.get(), SOL_SOCKET, SO_SNDBUF, &little, sizeof(little)), 0);
    server.add(std::move(ends.pool));
    send(ends.client.get(), request_for(kPieces * kSmallPiece));
    server.turn(-1, -1, -1);
    ASSERT_EQ(server.connections(), 1U); // it reads nothing
    now_ += WarmServer::kPatience;
    server.turn(-1, -1, 0);
    EXPECT_EQ(server.connections(), 0U);
    EXPECT_EQ(problem(), "it did not take what it asked for in time");
    // The pieces that were sent are gone. So is the one piece that was sealed for the client but could not be sent.
    const std::uint64_t sent_pieces = served_.back().bytes / kSmallPiece;
    EXPECT_GT(sent_pieces, 0U);
    EXPECT_EQ(stock.ready_pieces(), kPieces - sent_pieces - 1);
}

TEST_F(WarmServerTest, ClientThatGoesAwayLeavesTheRest) {
    fill(3);
    UniqueFd client = connect();
    send(client.get(), request_for(3 * kWarmPiece));
    client.reset();
    serve();
    EXPECT_NE(problem(), "");
    EXPECT_EQ(stock_.ready_pieces() * kWarmPiece + served_.back().bytes, 3 * kWarmPiece);
}

TEST_F(WarmServerTest, ClientOfAnotherUserIsRefused) {
    fill(1);
    std::string problem;
    WarmServer other(stock_, {.own_user = ::geteuid() + 1,
                              .served = [&](const WarmServer::Served& served) { problem = served.problem; }});
    if (::geteuid() == 0) {
        GTEST_SKIP() << "root is served by everybody; MemoryPool.OfAnotherUserIsRefused is the test for it";
    }
    Connection ends = make_connection();
    other.add(std::move(ends.pool));
    send(ends.client.get(), request_for(kWarmPiece));
    other.turn(-1, -1, -1);
    EXPECT_EQ(problem, "it is another user's");
}

// ---- A pool that is not honest

/// A pool that answers as a test says, and then disappears.
class HostilePool : public ::testing::Test {
  protected:
    static warm::Answer granted(std::uint32_t pieces, std::uint64_t bytes) {
        warm::Answer answer;
        answer.status = warm::Status::kGranted;
        answer.page_size = warm::number_of(PageSize::k4K);
        answer.bytes = bytes;
        answer.pieces = pieces;
        return answer;
    }
    static warm::Piece piece(std::uint64_t bytes = kWarmPiece, std::uint32_t share = 0) {
        return {.share = share, .bytes = bytes};
    }
    [[nodiscard]] int socket() const { return ends_.pool.get(); }

    WarmMemory take(const WarmRequest& request = wanted(kWarmPiece)) {
        ::shutdown(ends_.pool.get(), SHUT_WR); // it sends no more, but still listens
        return take_warm_memory_from(ends_.client.get(), request);
    }
    std::string refusal(const WarmRequest& request = wanted(kWarmPiece, true)) {
        return error_of([&] { return take(request).bytes; });
    }

    WarmPiece honest_ = [] {
        WarmPiece made = make_warm_piece();
        made.cut_and_seal(kWarmPiece);
        return made;
    }();
    Connection ends_ = make_connection();
};

TEST_F(HostilePool, PieceWhoseSizeMayChangeIsRefused) {
    const WarmPiece unsealed = make_warm_piece();
    send(socket(), granted(1, kWarmPiece));
    send(socket(), piece(), unsealed.fd());
    EXPECT_TRUE(mentions(refusal(), "it sent a piece that cannot be used: its size is not sealed"));
}

TEST_F(HostilePool, PieceOfAnotherSizeIsRefused) {
    const UniqueFd small = make_memfd(4096, F_SEAL_SHRINK | F_SEAL_GROW);
    send(socket(), granted(1, kWarmPiece));
    send(socket(), piece(), small.get());
    EXPECT_TRUE(mentions(refusal(), "it has another size than was said"));
}

TEST_F(HostilePool, PieceThatAnotherHasIsRefused) {
    WarmPiece owned(duplicate(honest_.fd()), kWarmPiece, PageSize::k4K, std::nullopt);
    owned.claim();
    send(socket(), granted(1, kWarmPiece));
    send(socket(), piece(), honest_.fd());
    EXPECT_TRUE(mentions(refusal(), "it was handed out before"));
}

TEST_F(HostilePool, PieceTwiceCannotBeClaimedTwice) {
    send(socket(), granted(2, 2 * kWarmPiece));
    send(socket(), piece(), honest_.fd());
    send(socket(), piece(), honest_.fd());
    WarmMemory memory = take(wanted(2 * kWarmPiece));
    memory.parts[0].piece.claim();
    EXPECT_NE(error_of([&] {
                  memory.parts[1].piece.claim();
                  return 0;
              }),
              "");
}

TEST_F(HostilePool, MessageWithoutADescriptorIsRefused) {
    send(socket(), granted(1, kWarmPiece));
    send(socket(), piece());
    EXPECT_TRUE(mentions(refusal(), "no piece of what is wanted"));
}

TEST_F(HostilePool, PieceThatNobodyWantsIsRefused) {
    send(socket(), granted(1, kWarmPiece));
    send(socket(), piece(kWarmPiece, 1), honest_.fd());
    EXPECT_TRUE(mentions(refusal(), "no piece of what is wanted"));
}

TEST_F(HostilePool, PieceThatIsLargerThanWantedIsRefused) {
    send(socket(), granted(1, 4096));
    send(socket(), piece(), honest_.fd());
    EXPECT_TRUE(mentions(refusal(wanted(4096)), "a piece that nobody wants"));
}

TEST_F(HostilePool, AnswersThatMakeNoSenseAreRefused) {
    const auto refused = [](const warm::Answer& answer) {
        const Connection ends = make_connection();
        send(ends.pool.get(), answer);
        return error_of([&] { return take_warm_memory_from(ends.client.get(), wanted(kWarmPiece)).bytes; });
    };
    EXPECT_TRUE(mentions(refused(granted(1, 2 * kWarmPiece)), "makes no sense"));      // more than was wanted
    EXPECT_TRUE(mentions(refused(granted(1, kWarmPiece / 2)), "makes no sense"));      // less than is enough
    EXPECT_TRUE(mentions(refused(granted(UINT32_MAX, kWarmPiece)), "makes no sense")); // more pieces than pages
    EXPECT_TRUE(mentions(refused(granted(0, kWarmPiece)), "makes no sense"));          // memory without pieces
    warm::Answer other = granted(1, kWarmPiece);
    other.status = static_cast<warm::Status>(77);
    EXPECT_TRUE(mentions(refused(other), "did not understand"));
}

TEST_F(HostilePool, LessThanItSaidIsRefused) {
    send(socket(), granted(1, kWarmPiece));
    WarmPiece small = make_warm_piece();
    small.cut_and_seal(4096);
    send(socket(), piece(4096), small.fd());
    EXPECT_TRUE(mentions(refusal(), "it sent 4 KiB instead of 2 MiB"));
}

TEST_F(HostilePool, ThatIsNoPoolIsNamed) {
    const std::string text = "HTTP/1.1 400 Bad Request";
    ASSERT_GT(::send(socket(), text.data(), text.size(), 0), 0);
    EXPECT_TRUE(mentions(refusal(), "what answers there is no pool"));
}

TEST_F(HostilePool, OfAnotherVersionIsNamed) {
    warm::Answer answer = granted(1, kWarmPiece);
    answer.header.version = 2;
    send(socket(), answer);
    EXPECT_TRUE(mentions(refusal(), "another version of vmm"));
}

TEST_F(HostilePool, ThatGoesAwayWithoutAnAnswerIsAShortage) {
    const std::string error = error_of([&] { return take().bytes; });
    EXPECT_TRUE(mentions(error, "from the pool at /run/test.pool: ")) << error;
}

TEST_F(HostilePool, ThatGoesAwayInTheMiddleIsAnErrorOrNot) {
    for (const bool may_be_less : {false, true}) {
        const Connection ends = make_connection();
        send(ends.pool.get(), granted(2, 2 * kWarmPiece));
        const WarmPiece first = [] {
            WarmPiece made = make_warm_piece();
            made.cut_and_seal(kWarmPiece);
            return made;
        }();
        send(ends.pool.get(), piece(), first.fd());
        ASSERT_EQ(::shutdown(ends.pool.get(), SHUT_WR), 0);
        const auto take_it = [&] {
            return take_warm_memory_from(ends.client.get(), wanted(2 * kWarmPiece, may_be_less));
        };
        const std::string words = "it went away in the middle of the hand-over: 1 of 2 pieces came";
        if (may_be_less) {
            const WarmMemory memory = take_it();
            EXPECT_EQ(memory.bytes, kWarmPiece);
            EXPECT_TRUE(mentions(memory.short_because, words)) << memory.short_because;
        } else {
            EXPECT_TRUE(mentions(error_of(take_it), words));
        }
    }
}

TEST_F(HostilePool, ThatSaysNothingIsLeft) {
    WarmRequest request = wanted(kWarmPiece);
    request.patience = 1ms;
    const std::string error = error_of([&] { return take_warm_memory_from(ends_.client.get(), request).bytes; });
    EXPECT_TRUE(mentions(error, "it says nothing")) << error;
}

TEST_F(HostilePool, ThatSaysNothingDoesNotHoldUpAStop) {
    std::stop_source source;
    auto taking = std::async(std::launch::async, [&] {
        return error_of(
            [&] { return take_warm_memory_from(ends_.client.get(), wanted(kWarmPiece), source.get_token()).bytes; });
    });
    source.request_stop();
    EXPECT_TRUE(mentions(taking.get(), "a stop was requested"));
}

// ---- Sockets

TEST(WarmMemory, PoolThatIsNotThereIsAnErrorOrNot) {
    const vmm::testing::TemporaryDirectory directory;
    WarmRequest request = wanted(kWarmPiece);
    request.path = directory / "pool";
    EXPECT_TRUE(
        mentions(error_of([&] { return take_warm_memory(request).bytes; }), "there is none (start one: `vmm pool"));
    request.may_be_less = true;
    const WarmMemory memory = take_warm_memory(request);
    EXPECT_EQ(memory.bytes, 0U);
    EXPECT_TRUE(mentions(memory.short_because, "there is none"));
}

TEST(WarmMemory, FileThatIsNoSocketIsRefused) {
    const vmm::testing::TemporaryDirectory directory;
    WarmRequest request = wanted(kWarmPiece, true);
    request.path = directory.write("file", "text");
    EXPECT_TRUE(mentions(error_of([&] { return take_warm_memory(request).bytes; }), "the file there is no socket"));
}

TEST(WarmMemory, PathsThatCannotBeAreRefused) {
    EXPECT_NE(error_of([] {
                  check_pool_path("");
                  return 0;
              }),
              "");
    EXPECT_NE(error_of([] {
                  check_pool_path(std::string(108, 'x'));
                  return 0;
              }),
              "");
    EXPECT_NE(error_of([] {
                  check_pool_path(std::string("a\0b", 3));
                  return 0;
              }),
              "");
    check_pool_path(std::string(107, 'x'));
}

TEST(WarmMemory, RequestsThatCannotBeAreRefusedBeforeAnythingIsSent) {
    const vmm::testing::TemporaryDirectory directory;
    WarmRequest request = wanted(100, true);
    request.path = directory / "pool";
    EXPECT_TRUE(mentions(error_of([&] { return take_warm_memory(request).bytes; }), "whole pages"));
    request.shares.clear();
    EXPECT_TRUE(mentions(error_of([&] { return take_warm_memory(request).bytes; }), "1 to 64 shares"));
}

} // namespace
} // namespace vmm::prefault
