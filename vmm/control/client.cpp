#include "vmm/control/client.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <array>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <utility>

#include "kvm/host/format.hpp"
#include "kvm/host/unix_listener.hpp"
#include "vmm/control/server.hpp"

namespace vmm::control {

namespace {

constexpr std::size_t kReadBytes = 16UL * 1024;

/// Waits until `fd` has one of `events`. A `patience_ms` of -1 means for ever. Returns false if it took too long.
bool wait_for(int fd, short events, int patience_ms) {
    pollfd one{fd, events, 0};
    int ready = 0;
    do {
        ready = ::poll(&one, 1, patience_ms);
    } while (ready < 0 && errno == EINTR);
    return ready > 0;
}

/// Sends as send(2), together with `descriptors`, at most kMostDescriptors.
ssize_t send_some(int socket, std::string& bytes, std::span<const int> descriptors) {
    iovec piece{bytes.data(), bytes.size()};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kMostDescriptors)> control{};
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    if (!descriptors.empty()) {
        assert(descriptors.size() <= kMostDescriptors);
        message.msg_control = control.data();
        message.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
        cmsghdr* const header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(descriptors.size_bytes());
        std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size_bytes());
    }
    return ::sendmsg(socket, &message, MSG_NOSIGNAL);
}

constexpr int patience_ms() {
    return static_cast<int>(std::chrono::milliseconds(Client::kPatience).count());
}

} // namespace

UniqueFd Client::send(std::string_view method, std::string_view target, std::string_view body,
                      std::span<const int> descriptors) const {
    const std::string tried = "cannot reach the machine at " + path_ + ": ";
    if (path_.empty() || path_.size() > UnixListener::kLongestPath) {
        throw NobodyThere(tried + "a socket's path has 1 to " + std::to_string(UnixListener::kLongestPath) + " bytes");
    }
    UniqueFd socket = make_unix_socket(SOCK_STREAM);
    if (!socket) {
        throw_errno(errno, "make a unix socket");
    }
    if (const int error = connect_unix_socket(socket.get(), path_); error != 0) {
        const char* const advice = error == ENOENT || error == ECONNREFUSED
                                       ? " (is `vmm run --api` running, with this path?)"
                                   : error == EACCES ? " (the socket is its user's alone: be that user, or root)"
                                   : error == EAGAIN ? " (too many clients wait for it: try again later)"
                                                     : "";
        throw NobodyThere(tried + errno_reason(error) + advice);
    }
    std::string request = vmm::format("{} {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n", method, target);
    if (!body.empty()) {
        request += "Content-Type: application/json\r\n";
    }
    if (!body.empty() || method != "GET") {
        request += vmm::format("Content-Length: {}\r\n", body.size());
    }
    request += "\r\n" + std::string(body);
    while (!request.empty()) {
        const ssize_t sent = send_some(socket.get(), request, descriptors);
        if (sent >= 0) {
            descriptors = {}; // they have gone with the first byte
            request.erase(0, static_cast<std::size_t>(sent));
        } else if (errno != EAGAIN && errno != EINTR) {
            throw NobodyThere(tried + "it has closed the connection (are you another user than the machine's?)");
        } else if (!wait_for(socket.get(), POLLOUT, patience_ms())) {
            throw NobodyThere(tried + "it does not take the request (see whether its process still runs)");
        }
    }
    return socket;
}

namespace {

/// Reads until `done`. Returns false if the other side has closed.
template <typename Done>
bool read_until(int fd, AnswerReader& answer, int patience, Done done) {
    std::array<char, kReadBytes> bytes;
    while (!done()) {
        const ssize_t count = ::recv(fd, bytes.data(), bytes.size(), 0);
        if (count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR)) {
            return false;
        }
        if (count > 0) {
            answer.add({bytes.data(), static_cast<std::size_t>(count)});
        } else if (!wait_for(fd, POLLIN, patience)) {
            throw NobodyThere("the machine does not answer (see whether its process still runs)");
        }
    }
    return true;
}

[[noreturn]] void throw_gone() {
    throw NobodyThere("the machine closed its control socket before it had answered (it has ended, or you are another "
                      "user than its own)");
}

} // namespace

ClientAnswer Client::ask(std::string_view method, std::string_view target, std::string_view body,
                         std::span<const int> descriptors) const {
    const UniqueFd socket = send(method, target, body, descriptors);
    AnswerReader answer;
    const auto patience = static_cast<int>(answer_patience_.count());
    if (!read_until(socket.get(), answer, patience, [&] { return answer.is_whole(); })) {
        throw_gone();
    }
    return {answer.status(), answer.take_body()};
}

LineStream::LineStream(UniqueFd socket) : socket_(std::move(socket)) {
    if (!read_until(socket_.get(), reader_, patience_ms(), [&] { return reader_.has_head(); })) {
        throw_gone();
    }
    if (reader_.status() != 200) {
        if (!read_until(socket_.get(), reader_, patience_ms(), [&] { return reader_.is_whole(); })) {
            throw_gone();
        }
        refusal_ = reader_.take_body();
    }
}

std::optional<std::string> LineStream::next() {
    while (true) {
        pending_ += reader_.take_body();
        if (const std::size_t end = pending_.find('\n'); end != std::string::npos) {
            std::string line = pending_.substr(0, end);
            pending_.erase(0, end + 1);
            return line;
        }
        const std::size_t before = pending_.size();
        const bool open = !reader_.is_whole() && read_until(socket_.get(), reader_, -1, [&] {
            pending_ += reader_.take_body();
            return pending_.size() != before || reader_.is_whole();
        });
        if (!open && pending_.find('\n') == std::string::npos) {
            return std::nullopt;
        }
    }
}

} // namespace vmm::control
