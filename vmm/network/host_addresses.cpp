#include "vmm/network/host_addresses.hpp"

#include <arpa/inet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "kvm/host/error.hpp"
#include "vmm/network/socket_option.hpp"

namespace vmm {

namespace {

constexpr std::chrono::seconds kWithoutNews{1};
/// The most notifications that are read one by one. If there are more, that counts as a change.
constexpr int kMostNews = 64;
/// The most datagrams of an answer. A host with more addresses than that cannot lend one to a guest.
constexpr int kMostParts = 65536;
/// How often a table that changes while it is read is read again.
constexpr int kMostAttempts = 8;

#ifndef NETLINK_GET_STRICT_CHK
#define NETLINK_GET_STRICT_CHK 12
#endif

UniqueFd open_netlink(std::uint32_t groups) {
    UniqueFd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE));
    sockaddr_nl address{};
    address.nl_family = AF_NETLINK;
    address.nl_groups = groups;
    // The socket API takes every kind of address as a sockaddr; the size says which it is.
    if (fd && ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
        const int error = errno;
        fd.reset();
        errno = error;
    }
    return fd;
}

[[noreturn]] void refuse(int error) {
    throw_errno(error, "find out the host's own addresses, from which a guest of Config::nets.user is kept",
                error == EMFILE || error == ENFILE
                    ? "raise the limit on open files: `ulimit -n`"
                    : "the word host-loopback lets the guest reach them, and needs none of this");
}

bool is_netlink(const UniqueFd& socket) noexcept {
    return socket_option(socket, SO_DOMAIN) == AF_NETLINK && socket_option(socket, SO_PROTOCOL) == NETLINK_ROUTE;
}

std::uint32_t mask_of(unsigned bits) noexcept {
    return bits == 0 ? 0 : ~std::uint32_t{0} << (32 - std::min(bits, 32U));
}

bool is_delivered_here(std::uint8_t route_type) noexcept {
    return route_type == RTN_LOCAL || route_type == RTN_BROADCAST || route_type == RTN_ANYCAST;
}

/// Calls `take` for each message in a datagram of the kernel, with its type and the bytes after its header.
template <typename Take>
void for_each_message(std::span<const std::byte> bytes, Take take) {
    while (bytes.size() >= sizeof(nlmsghdr)) {
        nlmsghdr header{};
        std::memcpy(&header, bytes.data(), sizeof(header));
        if (header.nlmsg_len < sizeof(header) || header.nlmsg_len > bytes.size()) {
            return;
        }
        take(header, bytes.first(header.nlmsg_len).subspan(sizeof(header)));
        bytes = bytes.subspan(std::min<std::size_t>(NLMSG_ALIGN(header.nlmsg_len), bytes.size()));
    }
}

/// Calls `take` for each attribute of a message, with its type and content.
template <typename Take>
void for_each_attribute(std::span<const std::byte> bytes, Take take) {
    while (bytes.size() >= sizeof(rtattr)) {
        rtattr header{};
        std::memcpy(&header, bytes.data(), sizeof(header));
        if (header.rta_len < sizeof(header) || header.rta_len > bytes.size()) {
            return;
        }
        take(header.rta_type, bytes.first(header.rta_len).subspan(sizeof(header)));
        bytes = bytes.subspan(std::min<std::size_t>(RTA_ALIGN(header.rta_len), bytes.size()));
    }
}

template <typename Value>
bool load(std::span<const std::byte> bytes, Value& value) noexcept {
    if (bytes.size() < sizeof(value)) {
        return false;
    }
    std::memcpy(&value, bytes.data(), sizeof(value));
    return true;
}

std::uint32_t address_in(std::span<const std::byte> bytes) noexcept {
    std::uint32_t address = 0;
    static_cast<void>(load(bytes, address));
    return ntohl(address);
}

} // namespace

HostAddresses::Sockets HostAddresses::open() {
    Sockets sockets{open_netlink(0), {}};
    if (!sockets.queries) {
        refuse(errno);
    }
    // With this option the kernel sends only local routes, however many others there are. Older kernels send all.
    const int on = 1;
    static_cast<void>(::setsockopt(sockets.queries.get(), SOL_NETLINK, NETLINK_GET_STRICT_CHK, &on, sizeof(on)));
    sockets.changes = open_netlink(RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE);
    return sockets;
}

HostAddresses::HostAddresses(Sockets sockets) : sockets_(std::move(sockets)) {
    if (!is_netlink(sockets_.queries) || (sockets_.changes && !is_netlink(sockets_.changes))) {
        throw Error("cannot find out the host's own addresses: a descriptor that came for it is no socket of rtnetlink "
                    "(open it as `vmm ctl` does)");
    }
    if (const int error = read_all(); error != 0) {
        refuse(error);
    }
}

bool HostAddresses::contains(std::uint32_t address) {
    if (has_changed()) {
        stale_ = read_all() != 0; // If it fails, the old addresses are kept, and the next call tries again.
    }
    return std::ranges::any_of(prefixes_,
                               [address](const Prefix& prefix) { return (address & prefix.mask) == prefix.address; });
}

bool HostAddresses::has_changed() {
    if (!sockets_.changes) {
        return stale_ || std::chrono::steady_clock::now() - read_at_ >= kWithoutNews;
    }
    bool changed = stale_;
    std::array<std::byte, 8192> buffer;
    for (int news = 0; news < kMostNews; ++news) {
        const ssize_t count = ::recv(sockets_.changes.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
        if (count < 0 && errno != ENOBUFS && errno != EINTR) {
            return changed;
        }
        if (count < 0) { // some notifications may be lost
            changed = true;
            continue;
        }
        for_each_message(std::span(buffer).first(static_cast<std::size_t>(count)),
                         [&](const nlmsghdr& header, std::span<const std::byte> body) {
                             rtmsg route{};
                             const bool is_route =
                                 header.nlmsg_type == RTM_NEWROUTE || header.nlmsg_type == RTM_DELROUTE;
                             changed = changed || !is_route || !load(body, route) || is_delivered_here(route.rtm_type);
                         });
    }
    return true;
}

int HostAddresses::read_all() {
    std::vector<Prefix> prefixes;
    int error = dump(RTM_GETADDR, RTN_UNSPEC, prefixes);
    for (const std::uint8_t type : {RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST}) {
        error = error != 0 ? error : dump(RTM_GETROUTE, type, prefixes);
    }
    if (error == 0) {
        prefixes_ = std::move(prefixes);
        read_at_ = std::chrono::steady_clock::now();
        ++readings_;
    }
    return error;
}

int HostAddresses::dump(std::uint16_t request, std::uint8_t route_type, std::vector<Prefix>& prefixes) {
    std::array<std::byte, 32768> buffer;
    for (int attempts = 0; attempts < kMostAttempts; ++attempts) {
        // Parts of an earlier attempt's answer may be left.
        ssize_t left = 1;
        for (int parts = 0; left > 0 && parts < kMostParts; ++parts) {
            left = ::recv(sockets_.queries.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
        }
        const int error = dump_once(request, route_type, prefixes, buffer);
        if (error != EINTR && error != EBUSY) {
            return error;
        }
    }
    return EAGAIN;
}

/// Returns EINTR if the table changed meanwhile.
int HostAddresses::dump_once(std::uint16_t request, std::uint8_t route_type, std::vector<Prefix>& prefixes,
                             std::span<std::byte> buffer) {
    struct {
        nlmsghdr header;
        union {
            rtmsg route;
            ifaddrmsg address;
        };
    } query{};
    query.header.nlmsg_type = request;
    query.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
    query.header.nlmsg_seq = ++sequence_;
    if (request == RTM_GETROUTE) {
        query.header.nlmsg_len = NLMSG_LENGTH(sizeof(rtmsg));
        query.route.rtm_family = AF_INET;
        query.route.rtm_type = route_type;
    } else {
        query.header.nlmsg_len = NLMSG_LENGTH(sizeof(ifaddrmsg));
        query.address.ifa_family = AF_INET;
    }
    // Another process may have opened the socket, and may still use it. Therefore the query names its receiver, no call
    // waits, and only answers of the kernel are taken; the kernel's number is 0 (netlink(7)).
    sockaddr_nl kernel{};
    kernel.nl_family = AF_NETLINK;
    if (::sendto(sockets_.queries.get(), &query, query.header.nlmsg_len, MSG_DONTWAIT,
                 reinterpret_cast<const sockaddr*>(&kernel), sizeof(kernel)) < 0) {
        return errno;
    }
    int result = 0;
    bool done = false;
    for (int parts = 0; !done; ++parts) {
        // The kernel prepares the next part before it is asked for.
        sockaddr_nl sender{};
        socklen_t sender_bytes = sizeof(sender);
        const ssize_t count = ::recvfrom(sockets_.queries.get(), buffer.data(), buffer.size(), MSG_DONTWAIT | MSG_TRUNC,
                                         reinterpret_cast<sockaddr*>(&sender), &sender_bytes);
        if (count <= 0 || static_cast<std::size_t>(count) > buffer.size() || parts == kMostParts) {
            return count < 0 ? errno : EMSGSIZE;
        }
        if (sender.nl_pid != 0) {
            continue;
        }
        for_each_message(buffer.first(static_cast<std::size_t>(count)),
                         [&](const nlmsghdr& header, std::span<const std::byte> body) {
                             if (header.nlmsg_seq != sequence_) {
                                 return;
                             }
                             result = (header.nlmsg_flags & NLM_F_DUMP_INTR) != 0 ? EINTR : result;
                             done = done || header.nlmsg_type == NLMSG_DONE || header.nlmsg_type == NLMSG_ERROR;
                             nlmsgerr failure{};
                             if (header.nlmsg_type == NLMSG_ERROR && load(body, failure)) {
                                 result = -failure.error;
                             }
                             add(header.nlmsg_type, body, prefixes);
                         });
    }
    return result;
}

void HostAddresses::add(std::uint16_t type, std::span<const std::byte> body, std::vector<Prefix>& prefixes) {
    rtmsg route{};
    ifaddrmsg interface {};
    if (type == RTM_NEWROUTE && load(body, route) && is_delivered_here(route.rtm_type)) {
        Prefix prefix{0, mask_of(route.rtm_dst_len)};
        for_each_attribute(body.subspan(sizeof(route)), [&](std::uint16_t attribute, std::span<const std::byte> value) {
            prefix.address = attribute == RTA_DST ? address_in(value) & prefix.mask : prefix.address;
        });
        prefixes.push_back(prefix);
    } else if (type == RTM_NEWADDR && load(body, interface)) {
        // On a point-to-point interface IFA_ADDRESS is the other end, and IFA_LOCAL is there, too.
        std::uint32_t own = 0;
        std::uint32_t other = 0;
        for_each_attribute(body.subspan(sizeof(interface)),
                           [&](std::uint16_t attribute, std::span<const std::byte> value) {
                               own = attribute == IFA_LOCAL ? address_in(value) : own;
                               other = attribute == IFA_ADDRESS ? address_in(value) : other;
                           });
        if (own != 0 || other != 0) {
            prefixes.push_back({own != 0 ? own : other, mask_of(32)});
        }
    }
}

} // namespace vmm
