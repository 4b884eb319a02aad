// Warm memory in tests: pieces of small pages, and both ends of a connection.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <utility>

#include "kvm/host/mapping.hpp"
#include "prefault/host/numa.hpp"
#include "prefault/host/warm_piece.hpp"
#include "prefault/host/warm_protocol.hpp"
#include "prefault/host/workforce.hpp"

namespace vmm::prefault::testing {

inline constexpr std::uint64_t kWarmPiece = 2 * kMiB;

/// A piece like one of a pool.
[[nodiscard]] inline WarmPiece make_warm_piece(std::uint64_t bytes = kWarmPiece) {
    auto piece = WarmPiece::make({bytes, PageSize::k4K}, NumaTopology::read(), Workforce{},
                                 [](std::uint64_t, const std::stop_token&) {}, {});
    return std::move(piece.value());
}

/// A file in memory with `seals`.
[[nodiscard]] inline UniqueFd make_memfd(std::uint64_t bytes, int seals) {
    UniqueFd file(::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!file || ::ftruncate(file.get(), static_cast<off_t>(bytes)) != 0 ||
        (seals != 0 && ::fcntl(file.get(), F_ADD_SEALS, seals) != 0)) {
        throw std::runtime_error("cannot make a file in memory");
    }
    return file;
}

/// The same file by another descriptor.
[[nodiscard]] inline UniqueFd duplicate(int fd) {
    return UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
}

struct Connection {
    UniqueFd pool;
    UniqueFd client;
};

[[nodiscard]] inline Connection make_connection() {
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends.data()) != 0) {
        throw std::runtime_error("cannot make a pair of sockets");
    }
    return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

[[nodiscard]] inline warm::Request request_for(std::uint64_t bytes, bool may_be_less = false) {
    warm::Request request;
    request.page_size = warm::number_of(PageSize::k4K);
    request.may_be_less = may_be_less ? 1 : 0;
    request.share_count = 1;
    request.shares[0].bytes = bytes;
    return request;
}

} // namespace vmm::prefault::testing
