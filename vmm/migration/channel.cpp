#include "vmm/migration/channel.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "kvm/host/file_server.hpp"
#include "kvm/host/stoppable_read.hpp"
#include "kvm/host/unix_listener.hpp"
#include "vmm/migration/endpoints.hpp"
#include "vmm/migration/tls_helper.hpp"

namespace vmm {

namespace {

// They are newer than some headers that this is built with.
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

constexpr std::size_t kMostPieces = 16;
constexpr std::size_t kMostSentDescriptors = 64;

/// Whether `error` says that the other end, or the way to it, is gone.
constexpr bool is_lost_link(int error) noexcept {
    switch (error) {
    case ECONNRESET:
    case ECONNABORTED:
    case EPIPE:
    case ENOTCONN:
    case ESHUTDOWN:
    case ETIMEDOUT:
    case EHOSTUNREACH:
    case EHOSTDOWN:
    case ENETUNREACH:
    case ENETDOWN:
    case ENETRESET:
        return true;
    default:
        return false;
    }
}

constexpr bool is_worth_waiting(int error) noexcept {
    return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

[[noreturn]] void throw_transfer_error(int error, const std::string& tried) {
    if (is_lost_link(error)) {
        throw LinkError("cannot " + tried + ": " + errno_reason(error) +
                        " (see whether the process at the other end still runs, and what it says)");
    }
    throw_errno(error, tried);
}

int domain_of(int socket) noexcept {
    int domain = AF_UNSPEC;
    socklen_t size = sizeof(domain);
    return ::getsockopt(socket, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 ? domain : AF_UNSPEC;
}

/// A unix socket's other end. Before Linux 6.5 the process is known by its number only.
UniqueFd pidfd_of_peer(int socket) noexcept {
    int pidfd = -1;
    socklen_t size = sizeof(pidfd);
    if (::getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size) == 0) {
        return UniqueFd(pidfd);
    }
    if (errno != ENOPROTOOPT) {
        return {};
    }
    if (FileServer* const server = file_server()) { // A confined process may not open others.
        return server->open_process_of_peer(socket);
    }
    const auto peer = peer_of(socket);
    if (!peer || peer->process <= 0) {
        return {};
    }
    return UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, peer->process, 0)));
}

/// Waits for `events` of `fd`, or for its end. Returns which have come: none if `give_up` has passed. Throws
/// StoppedError.
short wait_for_link(int fd, short events, int stop_fd, GiveUpTime give_up, const std::string& tried) {
    for (;;) {
        // poll() passes over negative descriptors.
        std::array<pollfd, 2> ready{{{fd, events, 0}, {stop_fd, POLLIN, 0}}};
        const int count = ::poll(ready.data(), ready.size(), poll_milliseconds(give_up));
        if (count < 0 && errno != EINTR) {
            throw_errno(errno, tried);
        }
        if (count > 0 && ready[1].revents != 0) {
            throw StoppedError("cannot " + tried + ": a stop was requested");
        }
        if (count > 0) {
            return ready[0].revents;
        }
        if (count == 0 || std::chrono::steady_clock::now() >= give_up) {
            return 0;
        }
    }
}

} // namespace

Channel::Channel(UniqueFd socket, std::string name, int stop_fd)
    : Channel(std::move(socket), std::move(name), stop_fd, nullptr) {}

Channel::Channel(UniqueFd socket, std::string name, int stop_fd, std::unique_ptr<TlsHelper> tls)
    : tls_(std::move(tls)), socket_(std::move(socket)), name_(std::move(name)), stop_fd_(stop_fd) {
    const int flags = ::fcntl(socket_.get(), F_GETFL);
    if (flags < 0 || ::fcntl(socket_.get(), F_SETFL, flags | O_NONBLOCK) < 0) {
        throw_errno(errno, "use the connection with " + name_);
    }
    const bool is_unix = domain_of(socket_.get()) == AF_UNIX;
    takes_descriptors_ = is_unix && !tls_;
    if (takes_descriptors_) {
        peer_process_ = pidfd_of_peer(socket_.get());
    }
    if (is_unix) {
        // The kernel gives at most net.core.wmem_max, which is twice as much as before. Both ends are woken less often.
        constexpr int kSendBufferBytes = 4 << 20;
        ::setsockopt(socket_.get(), SOL_SOCKET, SO_SNDBUF, &kSendBufferBytes, sizeof(kSendBufferBytes));
    } else {
        set_tcp_options(socket_.get());
    }
}

Channel::~Channel() = default;

void Channel::wait(short events, std::chrono::steady_clock::time_point give_up, const std::string& tried) {
    // TCP goes on sending to a peer that has shut its socket down and keeps it open; no such peer receives any more.
    const auto watched = static_cast<short>((events & POLLOUT) != 0 ? events | POLLRDHUP : events);
    const short come = wait_for_link(socket_.get(), watched, stop_fd_, std::min(give_up, deadline_), tried);
    if (come == POLLRDHUP) {
        throw_end(tried);
    }
    if (std::chrono::steady_clock::now() >= deadline_) {
        throw LinkError("cannot " + tried +
                        ": it has taken longer than it may (see what the process at the other end " +
                        "waits for, and the network between)");
    }
    if (come == 0) {
        throw LinkError("cannot " + tried + ": not a byte has passed for " + in_words(patience_) +
                        " (see whether the process at the other end still runs, and the network between)");
    }
}

void Channel::send(std::span<const std::byte> bytes) {
    send(std::span(&bytes, 1));
}

void Channel::send(std::span<const std::span<const std::byte>> pieces) {
    assert(pieces.size() <= kMostPieces);
    std::array<iovec, kMostPieces> vectors{};
    std::size_t count = 0;
    for (const auto& piece : pieces) {
        if (!piece.empty()) {
            // The kernel only reads what it is to send.
            vectors[count++] = {const_cast<std::byte*>(piece.data()), piece.size()};
        }
    }
    GiveUpTime give_up = give_up_after(patience_);
    for (std::size_t first = 0; first < count;) {
        msghdr message{};
        message.msg_iov = &vectors[first];
        message.msg_iovlen = count - first;
        const ssize_t sent = ::sendmsg(socket_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0) {
            const int error = errno;
            const std::string tried = "send to " + name_;
            if (!is_worth_waiting(error)) {
                throw_transfer_error(error, tried);
            }
            wait(POLLOUT, give_up, tried);
            continue;
        }
        auto left = static_cast<std::size_t>(sent);
        while (first < count && left >= vectors[first].iov_len) {
            left -= vectors[first++].iov_len;
        }
        if (left > 0) {
            vectors[first].iov_base = static_cast<std::byte*>(vectors[first].iov_base) + left;
            vectors[first].iov_len -= left;
        }
        give_up = give_up_after(patience_);
    }
}

void Channel::receive(std::span<std::byte> bytes) {
    GiveUpTime give_up = give_up_after(patience_);
    while (!bytes.empty()) {
        const ssize_t count = ::recv(socket_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
        if (count > 0) {
            bytes = bytes.subspan(static_cast<std::size_t>(count));
            give_up = give_up_after(patience_);
            continue;
        }
        const int error = errno;
        const std::string tried = "receive from " + name_;
        if (count == 0) {
            throw_end(tried);
        }
        if (!is_worth_waiting(error)) {
            throw_transfer_error(error, tried);
        }
        wait(POLLIN, give_up, tried);
    }
}

void Channel::throw_end(const std::string& tried) {
    throw LinkError("cannot " + tried +
                    ": the connection has ended (see whether the process at the other end still runs, and what it "
                    "says)");
}

bool Channel::wait_readable(std::chrono::milliseconds patience) {
    return wait_for_link(socket_.get(), POLLIN, stop_fd_, give_up_after(patience), "wait for " + name_) != 0;
}

void Channel::send_descriptors(std::span<const int> fds) {
    const std::string tried = "send descriptors to " + name_;
    if (!takes_descriptors_ || fds.empty() || fds.size() > kMostSentDescriptors) {
        throw UsageError("cannot " + tried + ": " +
                         (takes_descriptors_ ? "there have to be 1 to " + std::to_string(kMostSentDescriptors)
                                             : "descriptors go only through unix sockets (take unix:PATH)"));
    }
    std::byte zero{};
    iovec vector{&zero, 1};
    alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(kMostSentDescriptors * sizeof(int))> control{};
    msghdr message{};
    message.msg_iov = &vector;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
    const GiveUpTime give_up = give_up_after(patience_);
    while (::sendmsg(socket_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
        const int error = errno;
        if (error == ETOOMANYREFS) {
            throw_errno(error, tried, "raise the limit on open files: `ulimit -n`");
        }
        if (!is_worth_waiting(error)) {
            throw_transfer_error(error, tried);
        }
        wait(POLLOUT, give_up, tried);
    }
}

std::vector<UniqueFd> Channel::receive_descriptors() {
    const std::string tried = "receive descriptors from " + name_;
    if (!takes_descriptors_) {
        throw UsageError("cannot " + tried + ": descriptors come only through unix sockets (take unix:PATH)");
    }
    std::byte byte{};
    iovec vector{&byte, 1};
    alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(kMostSentDescriptors * sizeof(int))> control{};
    msghdr message{};
    ssize_t count = -1;
    const GiveUpTime give_up = give_up_after(patience_);
    for (;;) {
        message = {};
        message.msg_iov = &vector;
        message.msg_iovlen = 1;
        message.msg_control = control.data();
        message.msg_controllen = control.size();
        count = ::recvmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (count >= 0) {
            break;
        }
        const int error = errno;
        if (!is_worth_waiting(error)) {
            throw_transfer_error(error, tried);
        }
        wait(POLLIN, give_up, tried);
    }
    // Whatever has come is owned before anything is refused.
    std::vector<UniqueFd> received;
    received.reserve(kMostSentDescriptors);
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        const std::size_t bytes = header->cmsg_len - CMSG_LEN(0);
        for (std::size_t at = 0; at + sizeof(int) <= bytes; at += sizeof(int)) {
            int fd = -1;
            std::memcpy(&fd, CMSG_DATA(header) + at, sizeof(fd)); // Within what the kernel says it has written.
            received.emplace_back(fd);
        }
    }
    if (count == 0) {
        throw_end(tried);
    }
    if ((message.msg_flags & MSG_CTRUNC) != 0) {
        throw Error("cannot " + tried + ": there are more than " + std::to_string(kMostSentDescriptors) +
                    ", or more than this process may have open (raise that limit with `ulimit -n`)");
    }
    if (byte != std::byte{}) {
        throw Error("cannot " + tried + ": something else has come (see that both ends are the same version)");
    }
    return received;
}

void Channel::shut_down() noexcept {
    if (tls_) {
        tls_->abandon();
    }
    ::shutdown(socket_.get(), SHUT_RDWR);
}

namespace {

UniqueFd connect_unix(const MigrationAddress& address, int stop_fd, GiveUpTime give_up, const std::string& tried) {
    if (address.path.empty() || address.path.size() > UnixListener::kLongestPath) {
        throw Error("cannot " + tried + ": the path must have 1 to " + std::to_string(UnixListener::kLongestPath) +
                    " bytes");
    }
    UniqueFd socket = make_unix_socket(SOCK_STREAM);
    if (!socket) {
        throw_errno(errno, tried);
    }
    constexpr int kPauseMs = 20;
    int error = connect_unix_socket(socket.get(), address.path);
    // So many wait to be taken that there is no room for us.
    while ((error == EAGAIN || error == EINTR) && poll_milliseconds(give_up) != 0) {
        check_not_stopped(stop_fd, tried, kPauseMs);
        error = connect_unix_socket(socket.get(), address.path);
    }
    if (error != 0) {
        throw_errno(error, tried,
                    {{ENOENT, "nobody listens there: start the other end first"},
                     {ECONNREFUSED, "nobody listens there any more: start the other end first"},
                     {EACCES, "the socket is its user's alone: be that user, or root"},
                     {EAGAIN, "too many others wait there: try again"},
                     {EPROTOTYPE, "that is a socket of another kind: check the path"}});
    }
    const auto peer = peer_of(socket.get());
    if (!peer || !is_trusted(peer->user, ::geteuid())) {
        throw Error("cannot " + tried + ": another user listens there" +
                    (peer ? ": " + std::to_string(peer->user) : "") +
                    " (both ends have to be the same user's, or the other one root's)");
    }
    return socket;
}

constexpr std::array kTcpConnectAdvice{
    ErrnoAdvice{ECONNREFUSED, "nobody listens there: start the other end first, and check the port"},
    ErrnoAdvice{ETIMEDOUT, "nobody answers: see that the host runs, and what its firewall forbids"},
    ErrnoAdvice{EHOSTUNREACH, "see that the host runs, and what its firewall forbids"},
    ErrnoAdvice{ENETUNREACH, "this host knows no way there: see `ip route`"},
    ErrnoAdvice{EADDRNOTAVAIL, "check the address; or no port of this host is free"},
    ErrnoAdvice{EINVAL, "check the address: a link-local one needs its interface, as in fe80::1%eth0"},
};

struct ConnectTry {
    UniqueFd socket; ///< empty: `error` says why
    int error = 0;
};

ConnectTry try_endpoint(const Endpoint& endpoint, int stop_fd, GiveUpTime give_up, const std::string& tried) {
    UniqueFd socket(::socket(endpoint.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!socket) {
        return {UniqueFd(), errno};
    }
    if (::connect(socket.get(), endpoint.get(), endpoint.size()) != 0) {
        if (errno != EINPROGRESS && errno != EINTR) {
            return {UniqueFd(), errno};
        }
        if (wait_for_link(socket.get(), POLLOUT, stop_fd, give_up, tried) == 0) {
            return {UniqueFd(), ETIMEDOUT};
        }
        int error = 0;
        socklen_t size = sizeof(error);
        if (::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &size) != 0 || error != 0) {
            return {UniqueFd(), error != 0 ? error : errno};
        }
    }
    // Where nobody listens on a port that the host gives to those who connect, a socket may meet itself (TCP's
    // simultaneous open).
    if (endpoint.is_loopback() && Endpoint::own_of_socket(socket.get()) == endpoint) {
        return {UniqueFd(), ECONNREFUSED};
    }
    return {std::move(socket), 0};
}

UniqueFd connect_tcp(const MigrationAddress& address, const MigrationSecurity& security, int stop_fd,
                     GiveUpTime give_up, const std::string& tried) {
    if (address.port.empty() || address.port == "0") {
        throw Error("cannot " + tried + ": there is no port (only who listens may leave it to the host)");
    }
    const std::vector<Endpoint> endpoints = resolve(address, stop_fd, give_up);
    for (const Endpoint& endpoint : endpoints) {
        check_protected(security, address, endpoint);
    }
    std::string reasons;
    int last_error = 0;
    for (std::size_t index = 0; index < endpoints.size(); ++index) {
        // Each gets its share of what time is left.
        const auto share = static_cast<std::int64_t>(endpoints.size() - index);
        const auto left = std::chrono::milliseconds(poll_milliseconds(give_up));
        ConnectTry result =
            try_endpoint(endpoints[index], stop_fd, left.count() < 0 ? give_up : give_up_after(left / share), tried);
        if (result.socket) {
            return std::move(result.socket);
        }
        last_error = result.error;
        reasons += (index == 0 ? "" : "; ") + endpoints[index].host() + ": " + errno_reason(result.error);
    }
    if (endpoints.size() == 1) {
        throw_errno(last_error, tried, kTcpConnectAdvice);
    }
    const std::string_view advice = errno_advice(last_error, kTcpConnectAdvice);
    throw Error("cannot " + tried + ": " + reasons + (advice.empty() ? "" : " (" + std::string(advice) + ")"));
}

} // namespace

std::unique_ptr<Channel> connect_channel(const MigrationAddress& address, const MigrationSecurity& security,
                                         int stop_fd, std::chrono::milliseconds patience) {
    security.check(address, false);
    const std::string name = to_string(address);
    const std::string tried = "connect to " + name;
    const GiveUpTime give_up = give_up_after(patience);
    if (address.kind == MigrationAddress::Kind::kUnix) {
        return std::make_unique<Channel>(connect_unix(address, stop_fd, give_up, tried), name, stop_fd);
    }
    return make_tcp_channel(connect_tcp(address, security, stop_fd, give_up, tried), security,
                            {.listens = false, .expected_name = address.host, .peer = name}, stop_fd, give_up);
}

} // namespace vmm
