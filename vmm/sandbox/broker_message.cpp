#include "vmm/sandbox/broker_message.hpp"

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>

#include "kvm/host/retry.hpp"

namespace vmm::broker_message {

int send(int socket, Head head, std::string_view first, std::string_view second,
         const std::array<int, kMostFds>& fds) noexcept {
    if (first.size() > kMostTextBytes || second.size() > kMostTextBytes) {
        return ENAMETOOLONG;
    }
    head.first_bytes = static_cast<std::uint32_t>(first.size());
    head.second_bytes = static_cast<std::uint32_t>(second.size());
    std::array<int, kMostFds> sent{};
    std::size_t count = 0;
    for (std::size_t place = 0; place < fds.size(); ++place) {
        if (fds[place] >= 0) {
            sent[count++] = fds[place];
            head.places |= 1U << place;
        }
    }
    // The socket API takes what it only reads as memory that could be written, too.
    std::array<iovec, 3> pieces{{{&head, sizeof head},
                                 {const_cast<char*>(first.data()), first.size()},
                                 {const_cast<char*>(second.data()), second.size()}}};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kMostFds)> control{};
    msghdr message{};
    message.msg_iov = pieces.data();
    message.msg_iovlen = pieces.size();
    if (count != 0) {
        message.msg_control = control.data();
        message.msg_controllen = CMSG_SPACE(sizeof(int) * count);
        cmsghdr* const header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int) * count);
        std::memcpy(CMSG_DATA(header), sent.data(), sizeof(int) * count);
    }
    // If sending fails, nothing has been sent, and there may be memory for the next try. EPIPE is not tried again,
    // because then the other end is gone.
    constexpr int kTries = 3;
    int error = EAGAIN;
    for (int tries = 0; tries < kTries && error != 0 && error != EPIPE; ++tries) {
        error = uninterrupted([&] { return ::sendmsg(socket, &message, MSG_NOSIGNAL); }) < 0 ? errno : 0;
    }
    return error;
}

std::optional<Parcel> receive(int socket) noexcept {
    try {
        Parcel received;
        std::string texts(2 * kMostTextBytes, '\0');
        std::array<iovec, 2> pieces{{{&received.head, sizeof received.head}, {texts.data(), texts.size()}}};
        alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kMostFds)> control{};
        msghdr message{};
        message.msg_iov = pieces.data();
        message.msg_iovlen = pieces.size();
        message.msg_control = control.data();
        message.msg_controllen = control.size();
        const ssize_t bytes = uninterrupted([&] { return ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC); });
        if (bytes <= 0) {
            errno = bytes == 0 ? 0 : errno;
            return std::nullopt;
        }
        std::array<UniqueFd, kMostFds> came;
        std::size_t count = 0;
        for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
            if (header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
                const std::size_t fds = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
                for (std::size_t i = 0; i < fds && count < came.size(); ++i) {
                    int fd = -1;
                    std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof fd);
                    came[count++].reset(fd);
                }
            }
        }
        const Head& head = received.head;
        const bool fits = static_cast<std::size_t>(bytes) >= sizeof head && head.first_bytes <= kMostTextBytes &&
                          head.second_bytes <= kMostTextBytes &&
                          static_cast<std::size_t>(bytes) == sizeof head + head.first_bytes + head.second_bytes &&
                          (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0;
        std::size_t next = 0;
        for (std::size_t place = 0; fits && place < kMostFds; ++place) {
            if ((head.places >> place & 1U) != 0 && next < count) {
                received.fds[place] = std::move(came[next++]);
            }
        }
        if (!fits || next != count) {
            errno = EPROTO;
            return std::nullopt;
        }
        received.first = texts.substr(0, head.first_bytes);
        received.second = texts.substr(head.first_bytes, head.second_bytes);
        return received;
    } catch (const std::bad_alloc&) {
        errno = ENOMEM;
        return std::nullopt;
    }
}

} // namespace vmm::broker_message
