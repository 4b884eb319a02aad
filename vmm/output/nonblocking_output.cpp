#include "vmm/output/nonblocking_output.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>

#include "kvm/host/retry.hpp"

namespace vmm {

namespace {

/// A write() that returns EPIPE if nobody reads any more, and keeps the signal that comes with it from the process.
/// This is needed because the process may belong to an embedding program.
ssize_t write_without_sigpipe(int fd, std::span<const std::byte> bytes) noexcept {
    sigset_t pipe_signal;
    sigset_t before;
    sigset_t pending;
    sigemptyset(&pipe_signal);
    sigaddset(&pipe_signal, SIGPIPE);
    ::sigpending(&pending);
    ::pthread_sigmask(SIG_BLOCK, &pipe_signal, &before);
    const ssize_t written = uninterrupted([&] { return ::write(fd, bytes.data(), bytes.size()); });
    const int error_number = errno;
    if (written < 0 && error_number == EPIPE && sigismember(&pending, SIGPIPE) == 0) {
        const timespec no_wait{};
        ::sigtimedwait(&pipe_signal, nullptr, &no_wait);
    }
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    errno = error_number;
    return written;
}

} // namespace

NonblockingOutput::NonblockingOutput(int fd) noexcept : shared_fd_(fd) {
    struct stat facts {};
    if (::fstat(fd, &facts) != 0 || S_ISREG(facts.st_mode) || S_ISBLK(facts.st_mode)) {
        return;
    }
    if (S_ISSOCK(facts.st_mode)) {
        way_ = Way::kSend;
        reopened_.reset(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
        return;
    }
    std::array<char, 32> path{};
    std::snprintf(path.data(), path.size(), "/proc/self/fd/%d", fd);
    reopened_.reset(::open(path.data(), O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
    if (!reopened_) {
        way_ = Way::kPollFirst;
        reopened_.reset(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    }
}

NonblockingOutput::Result NonblockingOutput::write(std::span<const std::byte> bytes) const noexcept {
    // poll() promises some room. On a pipe that is at least 512 bytes (POSIX: PIPE_BUF).
    constexpr std::size_t kAfterPoll = 512;
    ssize_t written = 0;
    switch (way_) {
    case Way::kWrite:
        written = write_without_sigpipe(fd(), bytes);
        break;
    case Way::kSend:
        written = ::send(fd(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
        break;
    case Way::kPollFirst: {
        pollfd ready{fd(), POLLOUT, 0};
        if (::poll(&ready, 1, 0) <= 0) {
            return {Status::kWouldBlock, 0};
        }
        written = write_without_sigpipe(fd(), bytes.first(std::min(bytes.size(), kAfterPoll)));
        break;
    }
    }
    if (written > 0) {
        return {Status::kWritten, static_cast<std::size_t>(written)};
    }
    if (written < 0 && (errno == EAGAIN || errno == EINTR)) {
        return {Status::kWouldBlock, 0};
    }
    return {Status::kClosed, 0, written < 0 ? errno : EIO};
}

} // namespace vmm
