#include "vmm/control/server.hpp"

#include <gtest/gtest.h>

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <deque>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "support/control_client.hpp"
#include "support/host_pipe.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/host_waiting.hpp"
#include "vmm/control/client.hpp"
#include "vmm/control/socket.hpp"

namespace vmm::control {
namespace {

using testing::eventually;
using testing::RawClient;

constexpr std::string_view kAskNow = "GET /now HTTP/1.1\r\n\r\n";

/// A server that answers /now at once with "pong", /later when the test says so, and /events with events.
class ServerTest : public ::testing::Test {
  protected:
    void start(ServerLimits limits = {}) {
        server_.emplace(
            socket_.fd(), events_, [this](const HttpRequest& request, const Reply& reply) { serve(request, reply); },
            limits);
    }
    void TearDown() override { server_.reset(); }

    [[nodiscard]] std::size_t waiting() {
        const std::lock_guard hold(lock_);
        return later_.size();
    }
    void answer_all() {
        const std::lock_guard hold(lock_);
        for (const Reply& reply : later_) {
            reply.send({.body = "at last"});
        }
        later_.clear();
    }
    /// True if the server still answers a correct client.
    [[nodiscard]] bool answers() const {
        RawClient client(path_);
        client.send(kAskNow);
        return client.read_until("pong");
    }

    testing::TemporaryDirectory directory_;
    std::string path_ = directory_ / "socket";
    ListeningSocket socket_{path_, {}};
    Events events_;
    std::mutex lock_;
    std::vector<Reply> later_;
    std::optional<Server> server_; // last, because it uses the rest

  private:
    /// The text that can be read from each received descriptor.
    static std::string text_in(const HttpRequest& request) {
        std::string text;
        if (!request.descriptors) {
            return "none";
        }
        for (const UniqueFd& fd : *request.descriptors) {
            std::array<char, 64> bytes{};
            const ssize_t count = ::pread(fd.get(), bytes.data(), bytes.size(), 0);
            text += "[" + std::string(bytes.data(), count > 0 ? static_cast<std::size_t>(count) : 0) + "]";
        }
        return text;
    }
    void serve(const HttpRequest& request, const Reply& reply) {
        if (request.path == "/later") {
            const std::lock_guard hold(lock_);
            later_.push_back(reply);
        } else if (request.path == "/events") {
            reply.send_events(1);
        } else if (request.path == "/read") {
            reply.send({.body = text_in(request)});
        } else if (request.path == "/large") {
            reply.send({.body = std::string(4UL << 20U, 'x')});
        } else {
            reply.send({.body = "pong"});
        }
    }
};

TEST_F(ServerTest, AnswersOneRequestAfterTheOther) {
    start();
    RawClient client(path_);
    for (int i = 0; i < 3; ++i) {
        client.send(kAskNow);
    }
    client.finish();
    const std::string& text = client.read_all();
    std::size_t answers = 0;
    for (std::size_t at = text.find("pong"); at != std::string::npos; at = text.find("pong", at + 1)) {
        ++answers;
    }
    EXPECT_EQ(answers, 3U) << text;
}

TEST_F(ServerTest, DescriptorsBelongToTheRequestThatTheyCameWith) {
    start();
    const UniqueFd one(::open(directory_.write("one", "first").c_str(), O_RDONLY | O_CLOEXEC));
    const UniqueFd two(::open(directory_.write("two", "second").c_str(), O_RDONLY | O_CLOEXEC));
    const Client client(path_);
    const std::array fds{one.get(), two.get()};
    EXPECT_EQ(client.ask("GET", "/read", {}, fds).body, "[first][second]");
    EXPECT_EQ(client.ask("GET", "/read", {}, std::span(fds).first(1)).body, "[first]");
    EXPECT_EQ(client.ask("GET", "/read").body, "none");
    EXPECT_EQ(client.ask("GET", "/now", {}, fds).body, "pong") << "whoever takes none is served all the same";
}

TEST_F(ServerTest, DescriptorsThatNobodyTakesAreClosed) {
    start();
    testing::Pipe pipe;
    {
        const UniqueFd writer(::fcntl(pipe.writer.get(), F_DUPFD_CLOEXEC, 0));
        EXPECT_EQ(Client(path_).ask("GET", "/now", {}, std::array{writer.get()}).body, "pong");
    }
    pipe.writer.reset();
    EXPECT_TRUE(eventually([&] {
        pollfd end{pipe.reader.get(), POLLIN, 0};
        return ::poll(&end, 1, 0) == 1 && (end.revents & POLLHUP) != 0;
    }));
}

TEST_F(ServerTest, MoreDescriptorsThanAnythingTakesAreRefused) {
    start();
    const UniqueFd file(::open(directory_.write("one", "first").c_str(), O_RDONLY | O_CLOEXEC));
    for (const std::size_t count : {kMostDescriptors + 1, std::size_t{200}}) {
        RawClient client(path_);
        client.send_with(kAskNow, std::vector<int>(count, file.get()));
        EXPECT_TRUE(client.read_until("descriptors that came with the request cannot be taken")) << count;
    }
    RawClient drop_by_drop(path_);
    for (std::size_t i = 0; i <= kMostDescriptors; ++i) {
        drop_by_drop.send_with("G", {file.get()});
    }
    EXPECT_TRUE(drop_by_drop.read_until("HTTP/1.1 400"));
    EXPECT_TRUE(answers());
}

TEST_F(ServerTest, AnswersManyRequestsThatCameTogether) {
    start();
    RawClient client(path_);
    std::string all;
    for (int i = 0; i < 500; ++i) {
        all += kAskNow;
    }
    client.send(all);
    client.send("GET /now HTTP/1.1\r\nConnection: close\r\n\r\n");
    EXPECT_NE(client.read_all().find("Connection: close"), std::string::npos);
}

TEST_F(ServerTest, ClosesWhereTheClientWantsThat) {
    start();
    RawClient client(path_);
    client.send("GET /now HTTP/1.0\r\n\r\n");
    EXPECT_NE(client.read_all().find("pong"), std::string::npos);
}

TEST_F(ServerTest, AnswersOthersWhileOneWaits) {
    start();
    RawClient waits(path_);
    waits.send("POST /later HTTP/1.1\r\n\r\n");
    ASSERT_TRUE(eventually([&] { return waiting() == 1; }));
    EXPECT_TRUE(answers());
    answer_all();
    EXPECT_TRUE(waits.read_until("at last"));
}

TEST_F(ServerTest, ForgetsAClientThatGoesBeforeItsAnswer) {
    start();
    {
        RawClient gone(path_);
        gone.send("POST /later HTTP/1.1\r\n\r\n");
        ASSERT_TRUE(eventually([&] { return waiting() == 1; }));
    }
    answer_all();
    EXPECT_TRUE(answers());
}

TEST_F(ServerTest, ForgetsAClientThatGoesInMidAnswer) {
    start();
    for (int i = 0; i < 20; ++i) {
        RawClient gone(path_);
        gone.send("GET /large HTTP/1.1\r\n\r\n");
        EXPECT_TRUE(gone.read_until("200 OK"));
    }
    EXPECT_TRUE(answers());
}

TEST_F(ServerTest, RefusesGarbageAndSaysWhy) {
    start();
    RawClient client(path_);
    client.send(std::string(100'000, '\x01'));
    client.finish();
    EXPECT_NE(client.read_all().find("\"advice\""), std::string::npos) << client.text();
    EXPECT_TRUE(answers());
}

TEST_F(ServerTest, RefusesAHugeHeadAndSaysWhy) {
    start();
    RawClient client(path_);
    client.send("GET / HTTP/1.1\r\nX: " + std::string(1'000'000, 'x'));
    client.finish();
    EXPECT_NE(client.read_all().find(" 431 "), std::string::npos) << client.text();
    EXPECT_TRUE(answers());
}

TEST_F(ServerTest, ClosesOnAClientWhoseRequestNeverEnds) {
    start({.patience = std::chrono::milliseconds(50)});
    RawClient client(path_);
    client.send("GET /now HT");
    EXPECT_TRUE(client.is_closed());
}

TEST_F(ServerTest, ClosesOnAClientThatSendsAByteNowAndThen) {
    start({.patience = std::chrono::milliseconds(50)});
    RawClient client(path_);
    client.send("GET /now HTTP/1.1\r\nX: ");
    // Each byte comes long before the patience ends, but all of them together take longer.
    EXPECT_TRUE(eventually([&] {
        client.send("x");
        return client.has_hung_up();
    }));
}

TEST_F(ServerTest, ClosesOnAClientThatReadsNothing) {
    start({.patience = std::chrono::milliseconds(50)});
    RawClient client(path_);
    client.send("GET /large HTTP/1.1\r\n\r\n");
    ASSERT_TRUE(client.read_until("200 OK"));
    EXPECT_TRUE(eventually([&] { return client.has_hung_up(); }));
    EXPECT_TRUE(answers());
}

TEST_F(ServerTest, ClosesOnAClientThatIsIdle) {
    start({.idle_patience = std::chrono::milliseconds(50)});
    RawClient client(path_);
    EXPECT_TRUE(client.is_closed());
}

TEST_F(ServerTest, ServesOthersBesideAThousandConnections) {
    start();
    std::deque<RawClient> hostile;
    for (int i = 0; i < 1000; ++i) {
        RawClient& client = hostile.emplace_back(path_);
        ASSERT_TRUE(client.is_connected());
        client.send(i % 2 == 0 ? "GET /now HTT" : "");
        if (hostile.size() > 200) { // few descriptors are available where tests run
            hostile.pop_front();
        }
    }
    EXPECT_TRUE(answers());
}

TEST_F(ServerTest, LetsNewClientsWaitWhileAllOthersHaveARequest) {
    start({.connections = 2});
    RawClient one(path_);
    RawClient two(path_);
    one.send("POST /later HTTP/1.1\r\n\r\n");
    two.send("POST /later HTTP/1.1\r\n\r\n");
    ASSERT_TRUE(eventually([&] { return waiting() == 2; }));
    RawClient third(path_);
    third.send(kAskNow);
    answer_all();
    EXPECT_TRUE(one.read_until("at last"));
    EXPECT_TRUE(third.read_until("pong"));
}

TEST_F(ServerTest, FollowersGetWhatHappenedAndWhatHappensNext) {
    events_.add("before");
    start();
    RawClient client(path_);
    client.send("GET /events HTTP/1.1\r\n\r\n");
    EXPECT_TRUE(client.read_until("before"));
    events_.add("after");
    EXPECT_TRUE(client.read_until("after"));
    for (int i = 0; i < 100; ++i) { // more than fits into a buffer at once
        events_.add("many", {{"i", i}});
    }
    EXPECT_TRUE(client.read_until("\"i\":99"));
    events_.add("last");
    server_.reset();
    EXPECT_NE(client.read_all().find("last"), std::string::npos);
    EXPECT_TRUE(client.text().ends_with("0\r\n\r\n")) << client.text();
}

TEST_F(ServerTest, FollowersThatDoNotReadCostNothing) {
    start({.patience = std::chrono::milliseconds(50)});
    RawClient client(path_);
    client.send("GET /events HTTP/1.1\r\n\r\n");
    ASSERT_TRUE(client.read_until("200 OK"));
    for (int i = 0; i < 20'000; ++i) {
        events_.add("flood", {{"text", std::string(100, 'x')}});
    }
    EXPECT_TRUE(answers());
}

TEST_F(ServerTest, HasSoManyFollowersAtMost) {
    start({.streams = 1});
    RawClient first(path_);
    first.send("GET /events HTTP/1.1\r\n\r\n");
    ASSERT_TRUE(first.read_until("200 OK"));
    RawClient second(path_);
    second.send("GET /events HTTP/1.1\r\n\r\n");
    EXPECT_TRUE(second.read_until(" 429 "));
}

TEST_F(ServerTest, SendsNoBodyWhereOnlyTheHeadIsWanted) {
    start();
    RawClient client(path_);
    client.send("HEAD /now HTTP/1.1\r\nConnection: close\r\n\r\n");
    EXPECT_TRUE(client.read_all().ends_with("\r\n\r\n")) << client.text();
}

TEST_F(ServerTest, EndsThoughAClientDoesNotRead) {
    start({.end_patience = std::chrono::milliseconds(50)});
    RawClient client(path_);
    client.send("GET /large HTTP/1.1\r\n\r\n");
    ASSERT_TRUE(client.read_until("200 OK"));
    server_.reset(); // it returns
}

TEST_F(ServerTest, ServesTheClientOfTheCommand) {
    start();
    const Client client(path_);
    EXPECT_EQ(client.ask("GET", "/now").body, "pong");
    EXPECT_EQ(client.ask("GET", "/large").body.size(), 4UL << 20U);
    events_.add("one");
    events_.add("two");
    LineStream lines = client.follow("/events");
    EXPECT_EQ(lines.status(), 200U);
    EXPECT_TRUE(lines.next()->find("one") != std::string::npos);
    EXPECT_TRUE(lines.next()->find("two") != std::string::npos);
    server_.reset();
    EXPECT_EQ(lines.next(), std::nullopt);
}

TEST(ControlClient, SaysThatNobodyIsThere) {
    const testing::TemporaryDirectory directory;
    EXPECT_THROW(static_cast<void>(Client(directory / "none").ask("GET", "/")), NobodyThere);
    EXPECT_THROW(static_cast<void>(Client(std::string(200, 'x')).ask("GET", "/")), NobodyThere);
}

} // namespace
} // namespace vmm::control
