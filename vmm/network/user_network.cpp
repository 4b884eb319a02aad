#include "vmm/network/user_network.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <optional>
#include <sstream>
#include <utility>

#include "kvm/host/error.hpp"
#include "vmm/network/socket_option.hpp"

namespace vmm {

namespace {

constexpr const char* kProgram = "passt";
constexpr const char* kTried = "give the guest a network by Config::nets.user";
/// The gateway's address. Any address is possible. Without this option passt takes the address of an interface with a
/// route, and there may be no such interface.
constexpr const char* kGatewayMac = "52:55:0a:00:02:02";
/// The user "nobody", as a number, because passt looks up a name in /etc/passwd, which may not exist.
constexpr const char* kNobody = "65534:65534";

std::string search_path() {
    const char* const path = std::getenv("PATH");
    return path != nullptr ? path : "/usr/bin:/bin";
}

/// Finds the program as execvp() would.
std::optional<std::string> find_program(const std::string& name) {
    std::istringstream folders(search_path());
    for (std::string folder; std::getline(folders, folder, ':');) {
        std::string file = (folder.empty() ? "." : folder) + "/" + name;
        if (::access(file.c_str(), X_OK) == 0) {
            return file;
        }
    }
    return std::nullopt;
}

std::string program_or_throw() {
    auto program = find_program(kProgram);
    if (!program) {
        throw Error(std::string("cannot ") + kTried + ": the program passt is not in PATH (install the package passt)");
    }
    return *std::move(program);
}

std::string to_string(const PortForward& forward) {
    return std::string(forward.udp ? "UDP" : "TCP") + " port " + std::to_string(forward.host_port) + " of " +
           forward.host_address;
}

/// Throws Error if the port is not free. It is checked here, because passt would report it only when the guest runs.
void check_port(const PortForward& forward) {
    const int type = forward.udp ? SOCK_DGRAM : SOCK_STREAM;
    const UniqueFd socket(::socket(AF_INET, type | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(forward.host_port);
    address.sin_addr = host_address_of(forward);
    const int on = 1; // passt does the same, so connections of an earlier run that are still being closed do not count.
    if (!socket || ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
        ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
        throw_errno(errno, "forward " + to_string(forward) + " to the guest",
                    {{EADDRINUSE, "another program has it: take another port"},
                     {EADDRNOTAVAIL, "that is no address of this host"},
                     {EACCES, "ports below 1024 take root, or as sysctl net.ipv4.ip_unprivileged_port_start says: take "
                              "another port"},
                     {EAFNOSUPPORT, "this host has no IPv4"}});
    }
}

/// Whether `fd` is a connected unix stream socket. Sockets of other kinds may wait when they are closed. The process
/// that handed it over may still make it wait, so each call on it must use MSG_DONTWAIT.
bool is_connected_unix_stream(const UniqueFd& fd) {
    sockaddr_storage peer{};
    socklen_t bytes = sizeof(peer);
    // The socket API takes every kind of address as a sockaddr; the size says which it is.
    return socket_option(fd, SO_DOMAIN) == AF_UNIX && socket_option(fd, SO_TYPE) == SOCK_STREAM &&
           ::getpeername(fd.get(), reinterpret_cast<sockaddr*>(&peer), &bytes) == 0;
}

std::array<UniqueFd, 2> make_socket_pair() {
    std::array<int, 2> ends{-1, -1};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) {
        throw_errno(errno, kTried);
    }
    return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

} // namespace

in_addr host_address_of(const PortForward& forward) {
    in_addr address{};
    if (::inet_pton(AF_INET, forward.host_address.c_str(), &address) != 1) {
        throw Error("cannot forward " + to_string(forward) + " to the guest: that is no IPv4 address");
    }
    return address;
}

std::unique_ptr<devices::FrameFilter> make_frame_filter(const NetConfig& net) {
    return net.host_loopback ? nullptr : make_frame_filter(net, HostAddresses::open());
}

std::unique_ptr<devices::FrameFilter> make_frame_filter(const NetConfig& net, HostAddresses::Sockets sockets) {
    if (net.host_loopback) {
        return nullptr;
    }
    const auto number = [](const char* text) {
        in_addr address{};
        static_cast<void>(::inet_pton(AF_INET, text, &address)); // the text is a constant, and correct
        return ntohl(address.s_addr);
    };
    return std::make_unique<devices::FrameFilter>(
        devices::FrameFilter::Network{number(user_network::kGateway), number(user_network::kNameServer)},
        [addresses = std::make_shared<HostAddresses>(std::move(sockets))](std::uint32_t address) {
            return addresses->contains(address);
        });
}

void check_user_network(const NetConfig& net) {
    static_cast<void>(program_or_throw());
    static_cast<void>(make_frame_filter(net));
    for (const PortForward& forward : net.forwards) {
        check_port(forward);
    }
}

std::vector<std::string> passt_arguments(const NetConfig& net, int socket, bool as_root) {
    std::vector<std::string> words{"--foreground", "--quiet", "--fd", std::to_string(socket)};
    const auto add = [&words](std::initializer_list<std::string> more) {
        words.insert(words.end(), more.begin(), more.end());
    };
    if (as_root) {
        add({"--runas", kNobody});
    }
    // passt gets addresses that we choose. For the options that it would copy from an interface, we name the loopback
    // interface. So the network also works without a route, and the guest learns no address of the host. Its
    // connections use the host's routes.
    add({"--ipv4-only", "--address", user_network::kGuestAddress, "--netmask", user_network::kPrefixBits, "--gateway",
         user_network::kGateway, "--mac-addr", kGatewayMac, "--interface", "lo", "--dns-forward",
         user_network::kNameServer});
    if (!net.host_loopback) {
        add({"--no-map-gw"});
    }
    for (const PortForward& forward : net.forwards) {
        add({forward.udp ? "--udp-ports" : "--tcp-ports", forward.host_address + "/" +
                                                              std::to_string(forward.host_port) + ":" +
                                                              std::to_string(forward.guest_port)});
    }
    return words;
}

UserNetwork::UserNetwork(const NetConfig& net) {
    std::array<UniqueFd, 2> ends = make_socket_pair();
    socket_ = std::move(ends[0]);
    const UniqueFd theirs = std::move(ends[1]);
    std::array<UniqueFd, 2> of_errors = make_socket_pair();
    errors_ = std::move(of_errors[0]);
    const UniqueFd their_errors = std::move(of_errors[1]);
    // passt never waits for this socket. Text that does not fit in it is lost.
    static_cast<void>(::fcntl(their_errors.get(), F_SETFL, O_NONBLOCK));

    ProgramSpec spec;
    spec.program = program_or_throw();
    spec.arguments = passt_arguments(net, ChildProcess::kKeptFd, ::geteuid() == 0);
    spec.arguments.insert(spec.arguments.begin(), kProgram);
    // passt reads none of these variables. PATH is for a passt that is a script.
    spec.environment = {std::string("PATH=") + search_path()};
    spec.errors = their_errors.get();
    spec.kept = theirs.get();
    process_.emplace(spec, kTried);
}

UserNetwork::UserNetwork(UniqueFd socket, UniqueFd errors) : socket_(std::move(socket)), errors_(std::move(errors)) {
    for (const UniqueFd* const fd : {&socket_, &errors_}) {
        if (!is_connected_unix_stream(*fd)) {
            throw Error(std::string("cannot ") + kTried +
                        ": a descriptor that came for passt is no unix stream socket that is connected (open it as "
                        "`vmm ctl` does)");
        }
    }
}

UniqueFd UserNetwork::let_go() noexcept {
    if (process_) {
        process_->let_go();
    }
    return std::move(errors_);
}

std::string UserNetwork::last_words() const {
    constexpr std::size_t kMostBytes = 65536; // only another program than passt sends more
    std::string text;
    std::array<char, 4096> piece{};
    for (ssize_t count = 0;
         text.size() < kMostBytes && (count = ::recv(errors_.get(), piece.data(), piece.size(), MSG_DONTWAIT)) > 0;) {
        text.append(piece.data(), static_cast<std::size_t>(count));
    }
    std::istringstream lines(text);
    std::string last;
    for (std::string line; std::getline(lines, line);) {
        last = line.empty() ? last : line;
    }
    return last;
}

} // namespace vmm
