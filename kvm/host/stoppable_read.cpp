#include "kvm/host/stoppable_read.hpp"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <array>
#include <cerrno>

namespace vmm {

UniqueFd open_for_reading(const std::string& path, int stop_fd, const std::string& tried) {
    constexpr int kPauseMs = 20;
    constexpr int kMostPauses =
        60'000 / kPauseMs; // The kernel ends a lease after 45 s (/proc/sys/fs/lease-break-time).
    for (int pauses = 0;;) {
        UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
        if (fd) {
            return fd;
        }
        if (errno == EINTR) {
            continue;
        }
        if (errno != EWOULDBLOCK || ++pauses > kMostPauses) {
            throw_errno(errno, tried);
        }
        check_not_stopped(stop_fd, tried, kPauseMs);
    }
}

void check_not_stopped(int stop_fd, const std::string& tried, int wait_ms) {
    pollfd stop{stop_fd, POLLIN, 0}; // poll() ignores negative descriptors.
    if (::poll(&stop, 1, wait_ms) > 0) {
        throw StoppedError("cannot " + tried + ": a stop was requested");
    }
}

std::size_t read_some(int fd, std::span<std::byte> out, int stop_fd, const std::string& tried) {
    for (;;) {
        // poll() waits until the first writer of a fifo comes; read() would report the end of the file before.
        std::array<pollfd, 2> ready{{{fd, POLLIN, 0}, {stop_fd, POLLIN, 0}}};
        if (::poll(ready.data(), ready.size(), -1) < 0) {
            if (errno == EINTR) {
                continue;
            }
            throw_errno(errno, tried);
        }
        if (ready[1].revents != 0) {
            throw StoppedError("cannot " + tried + ": a stop was requested");
        }
        const ssize_t count = ::read(fd, out.data(), out.size());
        if (count >= 0) {
            return static_cast<std::size_t>(count);
        }
        if (errno != EINTR && errno != EAGAIN) {
            throw_errno(errno, tried);
        }
    }
}

} // namespace vmm
