#include "vmm/output/nonblocking_output.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <csignal>
#include <string>
#include <vector>

#include "support/host_child_process.hpp"
#include "support/host_pipe.hpp"
#include "support/host_temporary_directory.hpp"

namespace vmm {
namespace {

using testing::Pipe;
using testing::read_available;
using testing::SocketPair;
using Status = NonblockingOutput::Status;

/// Ignores SIGPIPE, as a program does that wants EPIPE; restores it at the end.
class IgnoreBrokenPipes {
  public:
    IgnoreBrokenPipes() : before_(std::signal(SIGPIPE, SIG_IGN)) {}
    ~IgnoreBrokenPipes() { std::signal(SIGPIPE, before_); }
    IgnoreBrokenPipes(const IgnoreBrokenPipes&) = delete;
    IgnoreBrokenPipes& operator=(const IgnoreBrokenPipes&) = delete;

  private:
    void (*before_)(int);
};

const std::vector<std::byte> kBlock(16384, std::byte{'x'});

/// Writes blocks until the output takes no more; returns how many bytes that were. It would never return if a write
/// blocked.
std::size_t fill(const NonblockingOutput& output, Status& last) {
    std::size_t total = 0;
    for (;;) {
        const auto result = output.write(kBlock);
        last = result.status;
        if (result.status != Status::kWritten) {
            return total;
        }
        EXPECT_GT(result.written, 0U);
        total += result.written;
    }
}

TEST(NonblockingOutput, WritesToAPipe) {
    const Pipe pipe;
    const NonblockingOutput output(pipe.writer.get());
    const auto result = output.write(std::span(kBlock).first(5));
    EXPECT_EQ(result.status, Status::kWritten);
    EXPECT_EQ(result.written, 5U);
    EXPECT_EQ(read_available(pipe.reader.get()), "xxxxx");
}

TEST(NonblockingOutput, SaysThatAPipeIsFullInsteadOfWaiting) {
    const Pipe pipe;
    const NonblockingOutput output(pipe.writer.get());
    Status last{};
    const std::size_t written = fill(output, last);
    EXPECT_EQ(last, Status::kWouldBlock);
    EXPECT_EQ(read_available(pipe.reader.get()).size(), written);
    EXPECT_EQ(output.write(kBlock).status, Status::kWritten) << "there is room again";
}

TEST(NonblockingOutput, SaysThatASocketIsFullInsteadOfWaiting) {
    const SocketPair sockets;
    const NonblockingOutput output(sockets.ours.get());
    Status last{};
    const std::size_t written = fill(output, last);
    EXPECT_EQ(last, Status::kWouldBlock);
    EXPECT_EQ(read_available(sockets.theirs.get()).size(), written);
}

TEST(NonblockingOutput, LeavesTheFlagsOfTheSharedFileAlone) {
    const Pipe pipe;
    const SocketPair sockets;
    for (const int fd : {pipe.writer.get(), sockets.ours.get()}) {
        const int before = ::fcntl(fd, F_GETFL);
        const NonblockingOutput output(fd);
        Status last{};
        fill(output, last);
        EXPECT_EQ(::fcntl(fd, F_GETFL), before);
        EXPECT_EQ(before & O_NONBLOCK, 0);
    }
}

TEST(NonblockingOutput, WritesAllToAFile) {
    const testing::TemporaryDirectory directory;
    const std::string path = directory.write("file", "before:");
    const UniqueFd file(::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC));
    const NonblockingOutput output(file.get());
    EXPECT_EQ(output.write(kBlock).written, kBlock.size());
    EXPECT_EQ(testing::content_of(path), "before:" + std::string(kBlock.size(), 'x'));
}

TEST(NonblockingOutput, SaysThatThePipesReaderIsGone) {
    const IgnoreBrokenPipes ignore;
    Pipe pipe;
    const NonblockingOutput output(pipe.writer.get());
    pipe.reader.reset();
    EXPECT_EQ(output.write(kBlock).status, Status::kClosed);
}

TEST(NonblockingOutput, OfAPipeWhoseReaderIsGoneDoesNotEndTheProgramThatEmbedsUs) {
    const std::string outcome = testing::in_child_process([]() -> std::string {
        std::signal(SIGPIPE, SIG_DFL);
        Pipe pipe;
        const NonblockingOutput output(pipe.writer.get());
        pipe.reader.reset();
        return output.write(kBlock).status == Status::kClosed ? "closed" : "something else";
    });
    EXPECT_EQ(outcome, "closed");
}

TEST(NonblockingOutput, SaysThatTheSocketsReaderIsGone) {
    const std::string outcome = testing::in_child_process([]() -> std::string {
        std::signal(SIGPIPE, SIG_DFL);
        SocketPair sockets;
        const NonblockingOutput output(sockets.ours.get());
        sockets.theirs.reset();
        return output.write(kBlock).status == Status::kClosed ? "closed" : "something else";
    });
    EXPECT_EQ(outcome, "closed");
}

TEST(NonblockingOutput, SaysThatADeviceIsFull) {
    const UniqueFd full(::open("/dev/full", O_WRONLY | O_CLOEXEC));
    ASSERT_TRUE(full);
    EXPECT_EQ(NonblockingOutput(full.get()).write(kBlock).status, Status::kClosed);
}

TEST(NonblockingOutput, OfNoDescriptorIsClosed) {
    EXPECT_EQ(NonblockingOutput(-1).write(kBlock).status, Status::kClosed);
}

} // namespace
} // namespace vmm
