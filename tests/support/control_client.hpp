// The client's end of a control socket, for tests: bytes as they are.
#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvm/host/unix_listener.hpp"
#include "support/host_waiting.hpp"

namespace vmm::testing {

/// A connection to a control socket. Threads: one.
class RawClient {
  public:
    /// Connects as soon as the other side listens.
    explicit RawClient(const std::string& path) : socket_(make_unix_socket(SOCK_STREAM)) {
        is_connected_ = eventually([&] { return connect_unix_socket(socket_.get(), path) == 0; });
    }

    [[nodiscard]] bool is_connected() const { return is_connected_; }

    /// Sends all of it, or as much as the other side takes before it closes.
    void send(std::string_view bytes) const {
        while (!bytes.empty()) {
            const ssize_t sent = ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
            if (sent >= 0) {
                bytes.remove_prefix(static_cast<std::size_t>(sent));
            } else if (errno != EAGAIN || !wait(POLLOUT)) {
                return;
            }
        }
    }
    /// Sends `bytes`, which the other side takes at once, together with descriptors: at most 253 (unix(7)).
    void send_with(std::string_view bytes, const std::vector<int>& descriptors) const {
        std::string text(bytes);
        iovec piece{text.data(), text.size()};
        std::vector<char> control(CMSG_SPACE(descriptors.size() * sizeof(int)));
        msghdr message{};
        message.msg_iov = &piece;
        message.msg_iovlen = 1;
        message.msg_control = control.data();
        message.msg_controllen = control.size();
        cmsghdr* const header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(descriptors.size() * sizeof(int));
        std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size() * sizeof(int));
        static_cast<void>(::sendmsg(socket_.get(), &message, MSG_NOSIGNAL));
    }
    /// Closes the sending direction.
    void finish() const { ::shutdown(socket_.get(), SHUT_WR); }
    void close() { socket_.reset(); }

    /// Reads until `text` holds `words`, or the other side closes.
    bool read_until(std::string_view words) {
        while (text_.find(words) == std::string::npos) {
            if (!read_some()) {
                return false;
            }
        }
        return true;
    }
    /// Reads until the other side closes, and returns everything that came.
    const std::string& read_all() {
        while (read_some()) {
        }
        return text_;
    }
    /// All that has been read.
    [[nodiscard]] const std::string& text() const { return text_; }
    /// True if the other side has closed already; reads nothing.
    [[nodiscard]] bool has_hung_up() const {
        pollfd one{socket_.get(), 0, 0};
        return ::poll(&one, 1, 0) > 0 && (one.revents & POLLHUP) != 0;
    }
    /// Waits until the other side closes; true if it does.
    [[nodiscard]] bool is_closed() {
        read_all();
        return is_closed_;
    }

  private:
    [[nodiscard]] bool wait(short events) const {
        pollfd one{socket_.get(), events, 0};
        constexpr std::chrono::milliseconds kPatienceOfPoll = kPatience;
        return ::poll(&one, 1, static_cast<int>(kPatienceOfPoll.count())) > 0;
    }
    bool read_some() {
        if (!wait(POLLIN)) {
            return false;
        }
        std::array<char, 4096> bytes;
        const ssize_t count = ::recv(socket_.get(), bytes.data(), bytes.size(), 0);
        if (count <= 0) {
            is_closed_ = count == 0 || errno != EAGAIN;
            return false;
        }
        text_.append(bytes.data(), static_cast<std::size_t>(count));
        return true;
    }

    UniqueFd socket_;
    bool is_connected_ = false;
    bool is_closed_ = false;
    std::string text_;
};

} // namespace vmm::testing
