#include "vmm/bench/bare_send.hpp"

#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/host/stopwatch.hpp"
#include "kvm/host/unique_fd.hpp"
#include "prefault/host/cpu_list.hpp"
#include "vmm/bench/bare_memory.hpp"

namespace vmm::bench {

namespace {

/// The size of a frame of a migration (vmm/migration/frames.hpp).
constexpr std::size_t kSendBytes = 256 << 10;
/// The time between two checks for a stop during a wait.
constexpr timeval kSendPatience{.tv_sec = 0, .tv_usec = 200'000};

struct SocketPair {
    UniqueFd from;
    UniqueFd to;
};

SocketPair make_unix_pair() {
    std::array<int, 2> fds{};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()) != 0) {
        throw_errno(errno, "make a pair of unix sockets");
    }
    return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

SocketPair make_tcp_pair() {
    const UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    // The socket API takes every kind of address as a sockaddr; the size says which it is.
    auto* const any = reinterpret_cast<sockaddr*>(&address);
    if (!listener || ::bind(listener.get(), any, size) != 0 || ::listen(listener.get(), 1) != 0 ||
        ::getsockname(listener.get(), any, &size) != 0) {
        throw_errno(errno, "listen at 127.0.0.1");
    }
    SocketPair pair;
    pair.from.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!pair.from || ::connect(pair.from.get(), any, size) != 0) {
        throw_errno(errno, "connect to 127.0.0.1");
    }
    pair.to.reset(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!pair.to) {
        throw_errno(errno, "accept a connection at 127.0.0.1");
    }
    return pair;
}

SocketPair make_pair_of(MigrateLink link) {
    SocketPair pair = link == MigrateLink::kUnix ? make_unix_pair() : make_tcp_pair();
    for (const int fd : {pair.from.get(), pair.to.get()}) {
        for (const int option : {SO_RCVTIMEO, SO_SNDTIMEO}) {
            if (::setsockopt(fd, SOL_SOCKET, option, &kSendPatience, sizeof(kSendPatience)) != 0) {
                throw_errno(errno, "set the patience of a socket");
            }
        }
    }
    return pair;
}

/// Moves all of `bytes` by `move`, which is send(2) or recv(2). Returns 0 or an errno: ECONNRESET if the connection
/// ends early, and ECANCELED for a stop.
template <typename Move>
int move_all(std::span<std::byte> bytes, const StopRequest& stop, Move move) noexcept {
    while (!bytes.empty()) {
        const ssize_t count = move(bytes.data(), std::min(bytes.size(), kSendBytes));
        if (count < 0 && (errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK)) {
            if (stop.is_requested()) {
                return ECANCELED;
            }
            continue;
        }
        if (count <= 0) {
            return count < 0 ? errno : ECONNRESET;
        }
        bytes = bytes.subspan(static_cast<std::size_t>(count));
    }
    return 0;
}

} // namespace

std::optional<double> send_bare(std::uint64_t bytes, PageSize page_size, MigrateLink link, unsigned streams,
                                const StopRequest& stop) {
    const auto workers = static_cast<unsigned>(std::max<std::size_t>(prefault::usable_cpu_list().size(), 1));
    BareMemory source(bytes, page_size, workers);
    BareMemory destination(bytes, page_size, workers);
    if (!source.populate(stop) || !destination.populate(stop)) {
        return std::nullopt;
    }
    const std::vector<BareMemory::Piece> from = source.pieces();
    const std::vector<BareMemory::Piece> to = destination.pieces();
    std::vector<SocketPair> pairs;
    for (unsigned stream = 0; stream < streams; ++stream) {
        pairs.push_back(make_pair_of(link));
    }
    std::atomic<int> failure{0};
    const auto start = std::chrono::steady_clock::now();
    {
        // Of `streams` streams, stream i takes pieces i, i + streams, and so on.
        const auto go_through = [&](unsigned stream, const std::vector<BareMemory::Piece>& pieces, int fd, auto move) {
            for (std::size_t i = stream; i < pieces.size(); i += streams) {
                if (const int error = move_all(pieces[i].bytes, stop, move); error != 0) {
                    failure = error;
                    ::shutdown(fd, SHUT_RDWR);
                    return;
                }
            }
        };
        std::vector<std::jthread> threads; // They use everything above.
        for (unsigned stream = 0; stream < streams; ++stream) {
            threads.emplace_back([&, stream] {
                const int fd = pairs[stream].from.get();
                go_through(stream, from, fd,
                           [fd](void* data, std::size_t size) { return ::send(fd, data, size, MSG_NOSIGNAL); });
            });
            threads.emplace_back([&, stream] {
                const int fd = pairs[stream].to.get();
                go_through(stream, to, fd,
                           [fd](void* data, std::size_t size) { return ::recv(fd, data, size, MSG_WAITALL); });
            });
        }
    }
    const double seconds = seconds_since(start);
    if (stop.is_requested()) {
        return std::nullopt;
    }
    if (failure != 0) {
        throw_errno(failure, "send memory through a connection of this host");
    }
    return seconds;
}

} // namespace vmm::bench
