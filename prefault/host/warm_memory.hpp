// Memory from a pool of warm memory (`vmm pool`), for whoever runs a guest.
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

/// How much memory is wanted of one node.
struct WarmShare {
    std::optional<unsigned> node{}; ///< nothing: of any
    std::uint64_t bytes = 0;        ///< whole pages
};

struct WarmRequest {
    std::string path{}; ///< the pool's unix socket
    PageSize page_size = PageSize::k2M;
    std::vector<WarmShare> shares{}; ///< 1 to 64, at most 16 TiB together
    /// Whether less than was wanted, or nothing, will do if the pool has too little, ends, or is not there. Otherwise
    /// that is an error, and the pool keeps what it has.
    bool may_be_less = false;
    /// How long a pool that says nothing is waited for.
    std::chrono::milliseconds patience{5000};
};

/// What a pool gave. A piece that is not claimed goes back to the kernel, and not to the pool.
struct WarmMemory {
    /// The part of one share.
    struct Part {
        WarmPiece piece;
        std::size_t share = 0;   ///< ascending
        std::uint64_t bytes = 0; ///< of the piece, from its beginning; whole pages
    };
    std::vector<Part> parts;
    std::uint64_t bytes = 0;   ///< of all parts
    std::string short_because; ///< why it is less than was wanted, and what to do; empty: it is not
};

/// Takes memory out of a pool:
///
///     WarmMemory warm = take_warm_memory({.path = "/run/vmm.pool", .shares = {{.bytes = kGiB}}});
///     for (WarmMemory::Part& part : warm.parts) {
///         map(part.piece.fd(), part.bytes); // shared, and aligned to the largest page
///         part.piece.claim();
///     }
///
/// A pool that is short, that ends in the middle or that is not there is an error or not, as the request says. It is
/// always an error if the pool has other pages, or is neither this user's nor root's, or sends what it must not.
/// Throws Error, also if `stop` is requested first.
[[nodiscard]] WarmMemory take_warm_memory(const WarmRequest& request, const std::stop_token& stop = {});

/// The same from a connection to a pool that somebody else has made (SOCK_SEQPACKET), which `request.path` names in
/// messages.
[[nodiscard]] WarmMemory take_warm_memory_from(int connection, const WarmRequest& request,
                                               const std::stop_token& stop = {});

/// Throws Error if `path` can be no pool's socket: it has 1 to 107 bytes, without a NUL.
void check_pool_path(const std::string& path);

} // namespace vmm::prefault
VMM_API_END
