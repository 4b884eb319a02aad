#include "vmm/control/socket.hpp"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstdlib>
#include <string_view>
#include <utility>

#include "kvm/host/error.hpp"

namespace vmm::control {

namespace {

constexpr int kFirstInherited = 3; // SD_LISTEN_FDS_START

std::optional<int> socket_option(int fd, int option) noexcept {
    int value = 0;
    socklen_t size = sizeof(value);
    return ::getsockopt(fd, SOL_SOCKET, option, &value, &size) == 0 ? std::optional(value) : std::nullopt;
}

std::optional<int> number_in(const char* variable) {
    const char* const text = std::getenv(variable); // NOLINT(concurrency-mt-unsafe): nobody changes the environment
    if (text == nullptr) {
        return std::nullopt;
    }
    const std::string_view word(text);
    int number = 0;
    const auto [last, error] = std::from_chars(word.data(), word.data() + word.size(), number);
    return error == std::errc() && last == word.data() + word.size() ? std::optional(number) : std::nullopt;
}

/// The address for `path`, which must fit.
std::pair<sockaddr_un, socklen_t> address_of_supervisor(std::string_view path) noexcept {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, path.size());
    if (path.front() == '@') { // An abstract name, unix(7).
        address.sun_path[0] = '\0';
    }
    return {address, static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size())};
}

} // namespace

ListeningSocket::ListeningSocket(const std::string& path, const std::function<void(const std::string&)>& warn) {
    listener_.emplace(path, SOCK_STREAM, "the control socket", warn);
    // Other users are sent away in any case, but they could keep the server busy.
    ::chmod(path.c_str(), S_IRUSR | S_IWUSR);
}

ListeningSocket::ListeningSocket(int fd) {
    const std::string tried = "cannot serve the control socket on descriptor " + std::to_string(fd) + ": ";
    const int flags = ::fcntl(fd, F_GETFL);
    if (flags < 0) {
        throw Error(tried + "it is not open (have whoever starts this program open a unix socket there, and listen)");
    }
    if (socket_option(fd, SO_DOMAIN) != AF_UNIX || socket_option(fd, SO_TYPE) != SOCK_STREAM ||
        socket_option(fd, SO_ACCEPTCONN) != 1) {
        throw Error(tried +
                    "it is no unix stream socket that listens (ListenStream= with a path, in systemd.socket(5))");
    }
    if (::fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || ::fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) {
        throw_errno(errno, "serve the control socket on descriptor " + std::to_string(fd));
    }
    inherited_.reset(fd);
}

std::optional<int> inherited_socket() {
    const std::optional<int> count = number_in("LISTEN_FDS");
    if (number_in("LISTEN_PID") != ::getpid() || !count || *count < 1) {
        return std::nullopt;
    }
    if (*count > 1) {
        throw Error("cannot serve the control socket on an inherited descriptor: there are " + std::to_string(*count) +
                    " of them, by LISTEN_FDS (name the one with --api-fd)");
    }
    return kFirstInherited;
}

namespace {

/// The connection to NOTIFY_SOCKET, if connect_supervisor() could make one.
UniqueFd& supervisor() {
    static UniqueFd connected;
    return connected;
}

} // namespace

void connect_supervisor() {
    const char* const where = std::getenv("NOTIFY_SOCKET"); // NOLINT(concurrency-mt-unsafe): as above
    if (where == nullptr || *where == '\0') {
        return;
    }
    const std::string_view path(where);
    if ((path.front() != '/' && path.front() != '@') || path.size() >= sizeof(sockaddr_un::sun_path)) {
        return;
    }
    UniqueFd socket = make_unix_socket(SOCK_DGRAM);
    const auto [name, size] = address_of_supervisor(path);
    // The socket API takes every kind of address as a sockaddr; the size says which it is.
    if (socket && ::connect(socket.get(), reinterpret_cast<const sockaddr*>(&name), size) == 0) {
        supervisor() = std::move(socket);
    }
}

std::string notify_supervisor(const std::string& state) {
    if (supervisor()) {
        const bool told = ::send(supervisor().get(), state.data(), state.size(), MSG_NOSIGNAL) >= 0;
        return told ? std::string() : "cannot tell NOTIFY_SOCKET that the machine runs: " + errno_reason(errno);
    }
    const char* const where = std::getenv("NOTIFY_SOCKET"); // NOLINT(concurrency-mt-unsafe): as above
    if (where == nullptr || *where == '\0') {
        return {};
    }
    const std::string_view path(where);
    const std::string tried = "cannot tell " + std::string(path) + " (NOTIFY_SOCKET) that the machine runs: ";
    if ((path.front() != '/' && path.front() != '@') || path.size() >= sizeof(sockaddr_un::sun_path)) {
        return tried + "it is no path of a unix socket";
    }
    const auto [address, size] = address_of_supervisor(path);
    const UniqueFd socket = make_unix_socket(SOCK_DGRAM);
    // The socket API takes every kind of address as a sockaddr; the size says which it is.
    if (!socket || ::sendto(socket.get(), state.data(), state.size(), MSG_NOSIGNAL,
                            reinterpret_cast<const sockaddr*>(&address), size) < 0) {
        return tried + errno_reason(errno);
    }
    return {};
}

} // namespace vmm::control
