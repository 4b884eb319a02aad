#include "vmm/machine/event_loop.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/epoll.h>

#include <stdexcept>

#include "kvm/host/event_fd.hpp"
#include "support/host_errors.hpp"
#include "support/host_pipe.hpp"
#include "support/host_temporary_directory.hpp"

namespace vmm {
namespace {

TEST(EventFd, IsReadableFromTheFirstSignalUntilItIsCleared) {
    const EventFd event;
    const auto readable = [&event] {
        pollfd ready{event.fd(), POLLIN, 0};
        return ::poll(&ready, 1, 0) == 1;
    };
    EXPECT_FALSE(readable());
    event.signal();
    event.signal();
    EXPECT_TRUE(readable());
    event.clear();
    EXPECT_FALSE(readable());
    event.clear(); // does not block
}

TEST(EventLoop, CallsTheHandlerOfWhatIsReady) {
    EventLoop loop;
    const EventFd quiet;
    const EventFd ready;
    int calls = 0;
    ASSERT_TRUE(loop.watch(quiet.fd(), EPOLLIN, [](std::uint32_t) { FAIL() << "nothing happened there"; }));
    ASSERT_TRUE(
        loop.watch(ready.fd(), EPOLLIN, [&](std::uint32_t events) { calls += (events & EPOLLIN) != 0 ? 1 : 0; }));
    ready.signal();
    loop.run_once(-1);
    EXPECT_EQ(calls, 1);
}

TEST(EventLoop, CallsAgainAsLongAsItIsReady) {
    EventLoop loop;
    const EventFd event;
    int calls = 0;
    ASSERT_TRUE(loop.watch(event.fd(), EPOLLIN, [&](std::uint32_t) { ++calls; }));
    event.signal();
    loop.run_once(0);
    loop.run_once(0);
    EXPECT_EQ(calls, 2);
}

TEST(EventLoop, KnowsWhetherItWouldWait) {
    EventLoop loop;
    const EventFd event;
    ASSERT_TRUE(loop.watch(event.fd(), EPOLLIN, [&](std::uint32_t) { event.clear(); }));
    EXPECT_FALSE(loop.has_events());
    event.signal();
    EXPECT_TRUE(loop.has_events());
    loop.run_once(0);
    EXPECT_FALSE(loop.has_events());
}

TEST(EventLoop, ReturnsWhenTimeIsUp) {
    EventLoop loop;
    loop.run_once(0);
    loop.run_once(1);
}

TEST(EventLoop, HandlerMayUnwatchItself) {
    EventLoop loop;
    const EventFd event;
    int calls = 0;
    ASSERT_TRUE(loop.watch(event.fd(), EPOLLIN, [&](std::uint32_t) {
        ++calls;
        loop.unwatch(event.fd());
    }));
    event.signal();
    loop.run_once(0);
    loop.run_once(0);
    EXPECT_EQ(calls, 1);
}

TEST(EventLoop, HandlerMayUnwatchAnotherThatIsReadyToo) {
    EventLoop loop;
    const EventFd one;
    const EventFd other;
    int calls = 0;
    ASSERT_TRUE(loop.watch(one.fd(), EPOLLIN, [&](std::uint32_t) {
        ++calls;
        loop.unwatch(other.fd());
    }));
    ASSERT_TRUE(loop.watch(other.fd(), EPOLLIN, [&](std::uint32_t) {
        ++calls;
        loop.unwatch(one.fd());
    }));
    one.signal();
    other.signal();
    loop.run_once(0);
    EXPECT_EQ(calls, 1) << "whichever came first took the other away";
}

TEST(EventLoop, HandlerMayWatchAgain) {
    EventLoop loop;
    const EventFd event;
    int calls = 0;
    ASSERT_TRUE(loop.watch(event.fd(), EPOLLIN, [&](std::uint32_t) {
        loop.unwatch(event.fd());
        ASSERT_TRUE(loop.watch(event.fd(), EPOLLIN, [&](std::uint32_t) { ++calls; }));
    }));
    event.signal();
    loop.run_once(0);
    loop.run_once(0);
    EXPECT_EQ(calls, 1);
}

TEST(EventLoop, SaysThatARegularFileCannotBeWatched) {
    const testing::TemporaryDirectory directory;
    const std::string path = directory.write("file", "text");
    const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    EventLoop loop;
    EXPECT_FALSE(loop.watch(file.get(), EPOLLIN, [](std::uint32_t) { FAIL() << "it is not watched"; }));
    loop.run_once(0);
}

TEST(EventLoop, DescriptorThatIsNoneIsAnError) {
    EventLoop loop;
    EXPECT_NE(testing::error_of([&] { return loop.watch(-1, EPOLLIN, [](std::uint32_t) {}); }), "");
}

TEST(EventLoop, UnwatchingWhatIsNotWatchedDoesNothing) {
    EventLoop loop;
    loop.unwatch(0);
    loop.unwatch(-1);
}

TEST(EventLoop, TellsThatTheOtherEndIsGone) {
    testing::Pipe pipe;
    EventLoop loop;
    std::uint32_t seen = 0;
    ASSERT_TRUE(loop.watch(pipe.reader.get(), EPOLLIN, [&](std::uint32_t events) { seen = events; }));
    pipe.writer.reset();
    loop.run_once(0);
    EXPECT_NE(seen & EPOLLHUP, 0U);
}

TEST(EventLoop, ThrowsWhatAHandlerThrows) {
    EventLoop loop;
    const EventFd event;
    ASSERT_TRUE(loop.watch(event.fd(), EPOLLIN, [](std::uint32_t) { throw std::runtime_error("from a handler"); }));
    event.signal();
    EXPECT_THROW(loop.run_once(0), std::runtime_error);
}

} // namespace
} // namespace vmm
