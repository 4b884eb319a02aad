#include "prefault/host/warm_protocol.hpp"

#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "kvm/host/retry.hpp"

namespace vmm::prefault::warm {

namespace {

/// Room for the descriptors of one packet. The kernel sends up to 253, and drops those that do not fit.
struct ControlRoom {
    alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(sizeof(int) * 2)> bytes{};
};

/// True if all values in `request` are valid.
bool is_sensible(const Request& request) {
    const auto page_size = page_size_of(request.page_size);
    if (!page_size || request.may_be_less > 1 || request.share_count < 1 ||
        request.share_count > Request::kMostShares) {
        return false;
    }
    std::uint64_t total = 0;
    for (const Share& share : std::span(request.shares).first(request.share_count)) {
        if (share.bytes == 0 || share.bytes > Request::kMostBytes - total ||
            !is_aligned(share.bytes, certain_page_bytes(*page_size))) {
            return false;
        }
        total += share.bytes;
    }
    return true;
}

} // namespace

std::uint32_t number_of(PageSize page_size) noexcept {
    for (std::uint32_t i = 0; i < kPageSizes.size(); ++i) {
        if (kPageSizes[i] == page_size) {
            return i;
        }
    }
    return UINT32_MAX;
}

std::optional<PageSize> page_size_of(std::uint32_t number) noexcept {
    return number < kPageSizes.size() ? std::optional(kPageSizes[number]) : std::nullopt;
}

std::variant<Request, Status> parse_request(std::span<const std::byte> packet) noexcept {
    Header header;
    if (packet.size() < sizeof(header)) {
        return Status::kNotUnderstood;
    }
    std::memcpy(&header, packet.data(), sizeof(header));
    if (header.magic != Header::kMagic) {
        return Status::kNotUnderstood;
    }
    if (header.version != Header::kVersion) {
        return Status::kOtherVersion;
    }
    Request request;
    if (packet.size() != sizeof(request)) {
        return Status::kNotUnderstood;
    }
    std::memcpy(&request, packet.data(), sizeof(request));
    if (!is_sensible(request)) {
        return Status::kNotUnderstood;
    }
    return request;
}

int send_packet(int socket, std::span<const std::byte> packet, int fd) noexcept {
    iovec part{const_cast<std::byte*>(packet.data()), packet.size()}; // sendmsg() does not write to it.
    ControlRoom control;
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (fd >= 0) {
        message.msg_control = control.bytes.data();
        message.msg_controllen = CMSG_SPACE(sizeof(int));
        cmsghdr* const head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof(int));
        std::memcpy(CMSG_DATA(head), &fd, sizeof(fd));
    }
    const ssize_t sent = uninterrupted([&] { return ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT); });
    return sent >= 0 ? 0 : errno;
}

int receive_packet(int socket, std::span<std::byte> out, Packet& packet) noexcept {
    iovec part{out.data(), out.size()};
    ControlRoom control;
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.bytes.data();
    message.msg_controllen = control.bytes.size();
    const ssize_t received =
        uninterrupted([&] { return ::recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC); });
    if (received < 0) {
        return errno;
    }
    packet = {static_cast<std::size_t>(received), (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0, {}};
    for (cmsghdr* head = CMSG_FIRSTHDR(&message); head != nullptr; head = CMSG_NXTHDR(&message, head)) {
        if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        for (std::size_t at = 0; at + sizeof(int) <= head->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
            int fd = -1;
            std::memcpy(&fd, CMSG_DATA(head) + at, sizeof(fd));
            UniqueFd owned(fd);
            if (packet.fd) {
                packet.whole = false;
            } else {
                packet.fd = std::move(owned);
            }
        }
    }
    return 0;
}

} // namespace vmm::prefault::warm
