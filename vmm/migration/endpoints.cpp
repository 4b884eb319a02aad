#include "vmm/migration/endpoints.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <sstream>

#include "kvm/host/error.hpp"
#include "kvm/host/stoppable_read.hpp"
#include "vmm/host/child_process.hpp"

namespace vmm {

namespace {

constexpr std::size_t kMostResolverBytes = 64UL * 1024;

using NameOfSocket = int (*)(int, sockaddr*, socklen_t*);

/// What `program` prints until it ends.
std::string resolver_output(const ProgramSpec& program, int stop_fd, GiveUpTime give_up, const std::string& trying) {
    std::array<int, 2> ends{-1, -1};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
        throw_errno(errno, trying);
    }
    const UniqueFd reader(ends[0]);
    UniqueFd writer(ends[1]);
    ProgramSpec with_output = program;
    with_output.out = writer.get();
    const ChildProcess process(with_output, trying);
    writer.reset();
    std::string text;
    std::array<char, 4096> bytes;
    while (text.size() < kMostResolverBytes) {
        std::array<pollfd, 2> ready{{{reader.get(), POLLIN, 0}, {stop_fd, POLLIN, 0}}};
        const int count = ::poll(ready.data(), ready.size(), poll_milliseconds(give_up));
        if (count < 0 && errno != EINTR) {
            throw_errno(errno, trying);
        }
        if (count == 0) {
            throw Error("cannot " + trying +
                        ": that took too long (see that the host's name service answers, or give "
                        "the address in numbers)");
        }
        if (count > 0 && ready[1].revents != 0) {
            throw StoppedError("cannot " + trying + ": a stop was requested");
        }
        if (count > 0 && ready[0].revents != 0) {
            const ssize_t size = ::read(reader.get(), bytes.data(), bytes.size());
            if (size == 0) {
                break;
            }
            text.append(bytes.data(), size < 0 ? 0 : static_cast<std::size_t>(size));
        }
    }
    return text;
}

/// What `getent ahosts` says: lines of an address, STREAM, and a name or nothing.
std::vector<Endpoint> endpoints_in(const std::string& text, in_port_t port) {
    std::vector<Endpoint> found;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        std::istringstream words(line);
        std::string address;
        std::string type;
        words >> address >> type;
        if (type == "STREAM") {
            if (const auto endpoint = Endpoint::from_numbers(address, port)) {
                found.push_back(*endpoint);
            }
        }
    }
    return found;
}

} // namespace

GiveUpTime give_up_after(std::chrono::milliseconds patience) noexcept {
    constexpr std::chrono::hours kYear{24 * 365};
    return patience > kYear ? GiveUpTime::max() : std::chrono::steady_clock::now() + patience;
}

int poll_milliseconds(GiveUpTime give_up) noexcept {
    if (give_up == GiveUpTime::max()) {
        return -1;
    }
    // Rounded up: poll() would end just before the time, again and again.
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(give_up - std::chrono::steady_clock::now()).count();
    return static_cast<int>(std::clamp<std::int64_t>(left, 0, std::numeric_limits<int>::max()));
}

std::string in_words(std::chrono::milliseconds patience) {
    return patience.count() % 1000 == 0 ? std::to_string(patience.count() / 1000) + " s"
                                        : std::to_string(patience.count()) + " ms";
}

std::optional<Endpoint> Endpoint::from_numbers(const std::string& host, in_port_t port) {
    Endpoint endpoint;
    sockaddr_in v4{};
    if (::inet_pton(AF_INET, host.c_str(), &v4.sin_addr) == 1) {
        v4.sin_family = AF_INET;
        v4.sin_port = htons(port);
        endpoint.size_ = sizeof(v4);
        std::memcpy(&endpoint.storage_, &v4, sizeof(v4));
        return endpoint;
    }
    sockaddr_in6 v6{};
    const std::size_t percent = host.find('%');
    if (::inet_pton(AF_INET6, host.substr(0, percent).c_str(), &v6.sin6_addr) != 1) {
        return std::nullopt;
    }
    if (percent != std::string::npos) {
        const std::string scope = host.substr(percent + 1);
        const char* const end = scope.data() + scope.size();
        // A number where it is one, an interface's name else. Connecting to 0, which is none, fails.
        if (const auto [last, error] = std::from_chars(scope.data(), end, v6.sin6_scope_id);
            error != std::errc() || last != end) {
            v6.sin6_scope_id = ::if_nametoindex(scope.c_str());
        }
    }
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons(port);
    endpoint.size_ = sizeof(v6);
    std::memcpy(&endpoint.storage_, &v6, sizeof(v6));
    return endpoint;
}

namespace {

// The socket API takes every kind of address as a sockaddr; the size says which it is.
socklen_t name_of_socket(NameOfSocket name_of, int socket, sockaddr_storage& storage) {
    socklen_t size = sizeof(storage);
    if (name_of(socket, reinterpret_cast<sockaddr*>(&storage), &size) != 0) {
        throw_errno(errno, "see who is at the other end of a connection", "it has just ended: try again");
    }
    return size;
}

} // namespace

Endpoint Endpoint::peer_of_socket(int socket) {
    Endpoint endpoint;
    endpoint.size_ = name_of_socket(::getpeername, socket, endpoint.storage_);
    return endpoint;
}

Endpoint Endpoint::own_of_socket(int socket) {
    Endpoint endpoint;
    endpoint.size_ = name_of_socket(::getsockname, socket, endpoint.storage_);
    return endpoint;
}

const sockaddr* Endpoint::get() const noexcept {
    return reinterpret_cast<const sockaddr*>(&storage_); // As above.
}

in_port_t Endpoint::port() const noexcept {
    // The port lies at the same place in both.
    static_assert(offsetof(sockaddr_in, sin_port) == offsetof(sockaddr_in6, sin6_port));
    sockaddr_in v4{};
    std::memcpy(&v4, &storage_, sizeof(v4));
    return ntohs(v4.sin_port);
}

std::string Endpoint::host() const {
    std::array<char, INET6_ADDRSTRLEN> text{};
    if (family() == AF_INET) {
        sockaddr_in v4{};
        std::memcpy(&v4, &storage_, sizeof(v4));
        ::inet_ntop(AF_INET, &v4.sin_addr, text.data(), text.size());
        return text.data();
    }
    sockaddr_in6 v6{};
    std::memcpy(&v6, &storage_, sizeof(v6));
    ::inet_ntop(AF_INET6, &v6.sin6_addr, text.data(), text.size());
    return text.data() + (v6.sin6_scope_id == 0 ? std::string() : "%" + std::to_string(v6.sin6_scope_id));
}

bool Endpoint::is_loopback() const noexcept {
    if (family() == AF_INET) {
        sockaddr_in v4{};
        std::memcpy(&v4, &storage_, sizeof(v4));
        return ntohl(v4.sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
    }
    sockaddr_in6 v6{};
    std::memcpy(&v6, &storage_, sizeof(v6));
    return IN6_IS_ADDR_LOOPBACK(&v6.sin6_addr) ||
           (IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr) && v6.sin6_addr.s6_addr[12] == IN_LOOPBACKNET);
}

std::vector<Endpoint> resolve(const MigrationAddress& address, int stop_fd, GiveUpTime give_up) {
    in_port_t port = 0;
    std::from_chars(address.port.data(), address.port.data() + address.port.size(), port);
    if (const auto endpoint = Endpoint::from_numbers(address.host, port)) {
        return {*endpoint};
    }
    if (address.host == "localhost") {
        return {*Endpoint::from_numbers("127.0.0.1", port), *Endpoint::from_numbers("::1", port)};
    }
    const std::string trying = "look up the address of " + address.host;
    std::string said;
    try {
        said = resolver_output({.program = "getent", .arguments = {"getent", "ahosts", address.host}}, stop_fd, give_up,
                               trying);
    } catch (const ProgramError&) {
        throw Error("cannot " + trying + ": the program `getent` cannot be started (give the address in numbers)");
    }
    std::vector<Endpoint> endpoints = endpoints_in(said, port);
    if (endpoints.empty()) {
        throw Error("cannot " + trying + ": nobody knows that name (`getent ahosts " + address.host +
                    "` asks, too; or give the address in numbers)");
    }
    return endpoints;
}

UniqueFd make_tcp_socket(int family, const std::string& tried) {
    UniqueFd socket(::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!socket) {
        throw_errno(errno, tried, {{EAFNOSUPPORT, "this host has no addresses of that kind: take another"}});
    }
    return socket;
}

void set_tcp_options(int socket) noexcept {
    const auto set = [socket](int level, int option, int value) {
        ::setsockopt(socket, level, option, &value, sizeof(value));
    };
    set(IPPROTO_TCP, TCP_NODELAY, 1);
    set(SOL_SOCKET, SO_KEEPALIVE, 1);
    set(IPPROTO_TCP, TCP_KEEPIDLE, 10);
    set(IPPROTO_TCP, TCP_KEEPINTVL, 5);
    set(IPPROTO_TCP, TCP_KEEPCNT, 4);
}

void throw_unprotected(const std::string& where) {
    throw Error("cannot use " + where +
                " for a migration: everybody between the hosts could read and change the guest (give a directory with "
                "certificates for TLS by MigrationSecurity::tls_directory; or take a unix socket or the loopback "
                "interface, and forward that by ssh; or declare the network safe by MigrationSecurity::insecure)");
}

void check_protected(const MigrationSecurity& security, const MigrationAddress& address, const Endpoint& endpoint) {
    if (security.tls_directory.empty() && !security.insecure && !endpoint.is_loopback()) {
        const std::string host = endpoint.host();
        throw_unprotected(to_string(address) + (host == address.host ? "" : ", which is " + host + ","));
    }
}

} // namespace vmm
