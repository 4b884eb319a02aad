// Pipes and sockets, and reading from them.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <stdexcept>
#include <string>
#include <string_view>

#include "kvm/host/unique_fd.hpp"

namespace vmm::testing {

struct Pipe {
    UniqueFd reader;
    UniqueFd writer;

    Pipe() {
        std::array<int, 2> ends{};
        if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
            throw std::runtime_error("cannot make a pipe");
        }
        reader.reset(ends[0]);
        writer.reset(ends[1]);
    }
};

struct SocketPair {
    UniqueFd ours;
    UniqueFd theirs;

    SocketPair() {
        std::array<int, 2> ends{};
        if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) {
            throw std::runtime_error("cannot make a socket pair");
        }
        ours.reset(ends[0]);
        theirs.reset(ends[1]);
    }
};

/// All that can be read until there is silence for `timeout_ms`.
[[nodiscard]] inline std::string read_available(int fd, int timeout_ms = 0) {
    std::string text;
    std::array<char, 65536> buffer{};
    pollfd ready{fd, POLLIN, 0};
    while (::poll(&ready, 1, timeout_ms) > 0) {
        const ssize_t count = ::read(fd, buffer.data(), buffer.size());
        if (count <= 0) {
            break;
        }
        text.append(buffer.data(), static_cast<std::size_t>(count));
    }
    return text;
}

inline void write_text(int fd, std::string_view text) {
    while (!text.empty()) {
        const ssize_t count = ::write(fd, text.data(), text.size());
        if (count <= 0) {
            throw std::runtime_error("cannot write to a pipe");
        }
        text.remove_prefix(static_cast<std::size_t>(count));
    }
}

} // namespace vmm::testing
