// Takes memory from a pool of warm memory (`vmm pool`), for a program that runs a guest.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "kvm/host/export.hpp"
#include "kvm/host/guest_memory.hpp"
#include "prefault/host/warm_piece.hpp"

VMM_API_BEGIN
namespace vmm::prefault {

/// How much memory is wanted from one node.
struct WarmShare {
    std::optional<unsigned> node{}; ///< nothing: from any node
    std::uint64_t bytes = 0;        ///< whole pages
};

struct WarmRequest {
    std::string path{}; ///< the pool's unix socket
    PageSize page_size = PageSize::k2M;
    std::vector<WarmShare> shares{}; ///< 1 to 64, at most 16 TiB together
    /// Whether less memory, or none, is acceptable if the pool has too little, ends, or does not exist. Otherwise that
    /// is an error, and the pool keeps its memory.
    bool may_be_less = false;
    /// How long to wait for a pool that does not answer.
    std::chrono::milliseconds patience{5000};
};

/// The memory that a pool gave. A piece that is not claimed goes back to the kernel, not to the pool.
struct WarmMemory {
    /// The memory for one share, or a part of it.
    struct Part {
        WarmPiece piece;
        std::size_t share = 0;   ///< ascending
        std::uint64_t bytes = 0; ///< of the piece that are used, from its beginning; whole pages
    };
    std::vector<Part> parts;
    std::uint64_t bytes = 0;   ///< of all parts
    std::string short_because; ///< why it is less than was wanted, and what to do; empty if it is not less
};

/// Takes memory out of a pool:
///
///     WarmMemory warm = take_warm_memory({.path = "/run/vmm.pool", .shares = {{.bytes = kGiB}}});
///     for (WarmMemory::Part& part : warm.parts) {
///         map(part.piece.fd(), part.bytes); // shared, and aligned to the largest page
///         part.piece.claim();
///     }
///
/// If the pool has too little, ends in the middle or does not exist, the request decides whether that is an error. It
/// is always an error if the pool has other pages, belongs to neither this user nor root, or breaks the protocol.
/// Throws Error, also if `stop` is requested first.
[[nodiscard]] WarmMemory take_warm_memory(const WarmRequest& request, const std::stop_token& stop = {});

/// Like take_warm_memory(), but over a connection to a pool that the caller has made (SOCK_SEQPACKET). `request.path`
/// names the pool in messages.
[[nodiscard]] WarmMemory take_warm_memory_from(int connection, const WarmRequest& request,
                                               const std::stop_token& stop = {});

/// Throws Error if `path` cannot be a pool's socket: it must have 1 to 107 bytes, without a NUL.
void check_pool_path(const std::string& path);

} // namespace vmm::prefault
VMM_API_END
