#include "vmm/migration/listener.hpp"

#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>

#include "kvm/host/error.hpp"
#include "vmm/migration/endpoints.hpp"
#include "vmm/migration/tls_helper.hpp"

namespace vmm {

namespace {

constexpr int kMostWaitingCallers = 64;
/// How long the listener's own name may be looked up.
constexpr std::chrono::seconds kOwnNamePatience{10};

constexpr std::array kTcpListenAdvice{
    ErrnoAdvice{EADDRINUSE, "another process uses that port: take another, or 0 for one that is free"},
    ErrnoAdvice{EADDRNOTAVAIL, "that is no address of this host: see `ip address`; 0.0.0.0 and [::] are all of them"},
    ErrnoAdvice{EACCES, "ports below 1024 are root's: take another"},
    ErrnoAdvice{EINVAL, "check the address: a link-local one needs its interface, as in fe80::1%eth0"},
};

/// Throws Error "cannot <tried>".
UniqueFd listen_at(const Endpoint& endpoint, const std::string& tried) {
    UniqueFd socket = make_tcp_socket(endpoint.family(), tried);
    const int yes = 1;
    // Connections that ended a moment ago do not keep the port.
    ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    if (::bind(socket.get(), endpoint.get(), endpoint.size()) != 0 ||
        ::listen(socket.get(), kMostWaitingCallers) != 0) {
        throw_errno(errno, tried, kTcpListenAdvice);
    }
    return socket;
}

/// Whether a caller was there and has gone, or is held off by the network or a filter (accept(2)).
constexpr bool is_of_the_caller(int error) noexcept {
    switch (error) {
    case EAGAIN:
    case EINTR:
    case ECONNABORTED:
    case EPERM:
    case EPROTO:
    case ENETDOWN:
    case ENOPROTOOPT:
    case EHOSTDOWN:
    case ENONET:
    case EHOSTUNREACH:
    case EOPNOTSUPP:
    case ENETUNREACH:
        return true;
    default:
        return false;
    }
}

} // namespace

MigrationListener::MigrationListener(MigrationAddress address, MigrationSecurity security,
                                     const std::function<void(const std::string&)>& warn)
    : address_(std::move(address)), security_(std::move(security)) {
    security_.check(address_, true);
    if (address_.kind == MigrationAddress::Kind::kUnix) {
        unix_.emplace(address_.path, SOCK_STREAM, "the unix socket of a migration", warn);
        // Others are sent away in any case, but they could keep it busy.
        ::chmod(address_.path.c_str(), S_IRUSR | S_IWUSR);
        return;
    }
    const std::string tried = "listen at " + to_string(address_);
    const std::vector<Endpoint> endpoints = resolve(address_, -1, give_up_after(kOwnNamePatience));
    check_protected(security_, address_, endpoints.front());
    tcp_ = listen_at(endpoints.front(), tried);
    address_.port = std::to_string(Endpoint::own_of_socket(tcp_.get()).port());
}

std::optional<MigrationListener::Caller> MigrationListener::take() {
    UniqueFd socket(::accept4(fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!socket) {
        if (is_of_the_caller(errno)) {
            return std::nullopt;
        }
        throw_errno(errno, "take a connection at " + to_string(address_));
    }
    if (unix_) {
        return Caller{std::move(socket), to_string(address_)};
    }
    try {
        const Endpoint peer = Endpoint::peer_of_socket(socket.get());
        return Caller{std::move(socket), to_string({.kind = MigrationAddress::Kind::kTcp,
                                                    .host = peer.host(),
                                                    .port = std::to_string(peer.port())})};
    } catch (const Error&) {
        return std::nullopt; // It has gone again.
    }
}

std::unique_ptr<Channel> MigrationListener::establish(Caller caller, int stop_fd,
                                                      std::chrono::milliseconds patience) const {
    if (unix_) {
        const auto peer = peer_of(caller.socket.get());
        if (!peer || !is_trusted(peer->user, ::geteuid())) {
            throw Error("cannot deal with who has connected to " + caller.name + ": it is another user" +
                        (peer ? ": " + std::to_string(peer->user) : "") +
                        " (both ends have to be the same user's, or the other one root's)");
        }
        return std::make_unique<Channel>(std::move(caller.socket), std::move(caller.name), stop_fd);
    }
    return make_tcp_channel(std::move(caller.socket), security_, {.listens = true, .peer = std::move(caller.name)},
                            stop_fd, give_up_after(patience));
}

} // namespace vmm
