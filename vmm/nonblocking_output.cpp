#include "vmm/nonblocking_output.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>

namespace vmm {

NonblockingOutput::NonblockingOutput(int fd) noexcept : shared_fd_(fd) {
    struct stat facts {};
    if (::fstat(fd, &facts) != 0 || S_ISREG(facts.st_mode)) {
        return;
    }
    if (S_ISSOCK(facts.st_mode)) {
        way_ = Way::kSend;
        return;
    }
    std::array<char, 32> path{};
    std::snprintf(path.data(), path.size(), "/proc/self/fd/%d", fd);
    reopened_.reset(::open(path.data(), O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
    if (!reopened_) {
        way_ = Way::kPollFirst;
    }
}

NonblockingOutput::Result NonblockingOutput::write(std::span<const std::byte> bytes) const noexcept {
    // poll() promises room for something, on a pipe for 512 bytes at least (POSIX: PIPE_BUF).
    constexpr std::size_t kAfterPoll = 512;
    ssize_t written = 0;
    switch (way_) {
    case Way::kWrite:
        written = ::write(fd(), bytes.data(), bytes.size());
        break;
    case Way::kSend:
        written = ::send(fd(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
        break;
    case Way::kPollFirst: {
        pollfd ready{fd(), POLLOUT, 0};
        if (::poll(&ready, 1, 0) <= 0) {
            return {Status::kWouldBlock, 0};
        }
        written = ::write(fd(), bytes.data(), std::min(bytes.size(), kAfterPoll));
        break;
    }
    }
    if (written > 0) {
        return {Status::kWritten, static_cast<std::size_t>(written)};
    }
    if (written < 0 && (errno == EAGAIN || errno == EINTR)) {
        return {Status::kWouldBlock, 0};
    }
    return {Status::kClosed, 0};
}

} // namespace vmm
