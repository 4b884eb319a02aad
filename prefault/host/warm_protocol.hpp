// The protocol between a pool of warm memory and its clients.
//
// A client connects to the pool's unix socket (SOCK_SEQPACKET), and each message is one packet of a fixed size. The
// client sends a Request. The pool sends an Answer, and if it grants something, one Piece for each piece of memory,
// with its descriptor (SCM_RIGHTS). Then both close. Numbers are in the machine's own byte order, because both ends are
// on it.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <variant>

#include "kvm/host/guest_memory.hpp"
#include "kvm/host/unique_fd.hpp"
#include "kvm/host/unix_listener.hpp"

namespace vmm::prefault::warm {

/// The beginning of every message.
struct Header {
    static constexpr std::uint32_t kMagic = 0x4d52'4157; ///< "WARM"
    /// The version of the protocol. Another version may change everything after the header, except the Answer that
    /// reports it.
    static constexpr std::uint32_t kVersion = 1;

    std::uint32_t magic = kMagic;
    std::uint32_t version = kVersion;
};

inline constexpr std::uint32_t kAnyNode = UINT32_MAX;

/// How much memory is wanted from one node.
struct Share {
    std::uint32_t node = kAnyNode;
    std::uint32_t reserved = 0;
    std::uint64_t bytes = 0; ///< a multiple of the page size
};

struct Request {
    static constexpr std::size_t kMostShares = 64;
    static constexpr std::uint64_t kMostBytes = 16 * kTiB; ///< of all shares together

    Header header{};
    std::uint32_t page_size = 0; ///< a PageSize
    std::uint32_t may_be_less = 0;
    std::uint32_t share_count = 0; ///< 1 to kMostShares
    std::uint32_t reserved = 0;
    std::array<Share, kMostShares> shares{};
};

/// The result of a request.
enum class Status : std::uint32_t {
    kGranted,       ///< all of it, or less if the request allows that
    kShort,         ///< the pool has less, and nothing was granted
    kOtherPageSize, ///< the pool's pages are of another size
    kNoNode,        ///< the pool's memory is not bound to nodes, or not to that one
    kOtherVersion,  ///< the version of the protocol is another one
    kNotForYou,     ///< the pool belongs to another user
    kNotUnderstood, ///< what was sent is no request
};

struct Answer {
    Header header{};
    Status status = Status::kNotUnderstood;
    std::uint32_t page_size = 0;  ///< of the pool
    std::uint64_t bytes = 0;      ///< granted
    std::uint64_t free_bytes = 0; ///< what the pool had before
    std::uint32_t pieces = 0;     ///< how many messages follow
    std::uint32_t reserved = 0;
};

struct Piece {
    Header header{};
    std::uint32_t share = 0; ///< the index of the piece's share; never less than in the message before
    std::uint32_t node = kAnyNode;
    std::uint64_t bytes = 0; ///< of the file; its end may be past the share's end, by less than the largest page
};

static_assert(sizeof(Request) == 24 + Request::kMostShares * 16 && sizeof(Answer) == 40 && sizeof(Piece) == 24);

/// The number of a page size in messages, and the reverse; nothing if there is no such page size.
[[nodiscard]] std::uint32_t number_of(PageSize page_size) noexcept;
[[nodiscard]] std::optional<PageSize> page_size_of(std::uint32_t number) noexcept;

/// Parses the request in a packet, or says why it is none. Safe for any bytes.
[[nodiscard]] std::variant<Request, Status> parse_request(std::span<const std::byte> packet) noexcept;

/// A packet that a peer has sent.
struct Packet {
    std::size_t bytes = 0;
    bool whole = false; ///< there was room for all of it, and it had at most one descriptor
    UniqueFd fd;        ///< empty if it had none
};

/// Sends one packet without waiting, with `fd` unless that is negative. Returns 0, or errno: EAGAIN if there is no room
/// now, EPIPE if the peer has closed.
[[nodiscard]] int send_packet(int socket, std::span<const std::byte> packet, int fd = -1) noexcept;

/// Receives one packet without waiting. Returns 0, or errno. A packet of 0 bytes means that the peer has closed.
/// Unexpected descriptors are closed.
[[nodiscard]] int receive_packet(int socket, std::span<std::byte> out, Packet& packet) noexcept;

/// The bytes of a message. A message has no padding, so that no other bytes of this process are sent with it.
template <typename Message>
[[nodiscard]] std::span<const std::byte> bytes_of(const Message& message) noexcept {
    static_assert(std::has_unique_object_representations_v<Message>);
    return std::as_bytes(std::span(&message, 1));
}

using Peer = UnixPeer;
using vmm::is_trusted;
using vmm::peer_of;

} // namespace vmm::prefault::warm
