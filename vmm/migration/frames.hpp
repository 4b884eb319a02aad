// How pages of guest memory are sent: frames on a stream.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "kvm/host/guest_address.hpp"

namespace vmm {

/// Most memory that one frame is of: 64 pages.
inline constexpr std::uint64_t kMostFrameBytes = 256 * kKiB;

/// What follows a frame's header.
enum class FrameKind : std::uint16_t {
    kRaw = 1,  ///< the bytes of the range
    kZero = 2, ///< nothing: the range is zero
    kZstd = 3, ///< the bytes of the range, compressed (RFC 8878)
    kAsk = 5,  ///< nothing, from the destination: it wants this range, a chunk or less, and a kSync with its address
    kSync = 4, ///< nothing: the frames of a round end here; `address` is the round's number
};

/// What stands before each frame: 32 bytes, little-endian.
struct FrameHeader {
    std::uint32_t magic = kMagic;
    FrameKind kind{};
    std::uint16_t reserved = 0; ///< 0
    std::uint64_t address = 0;  ///< of the first page
    std::uint32_t bytes = 0;    ///< of memory: whole pages of 4 KiB, at most kMostFrameBytes
    std::uint32_t payload_bytes = 0;
    std::uint32_t payload_crc32c = 0;
    std::uint32_t header_crc32c = 0; ///< of the 28 bytes before

    static constexpr std::uint32_t kMagic = 0x47504d56; // "VMPG"

    /// Fills in `header_crc32c`.
    void seal() noexcept;
    /// Throws Error unless this is a header that can be, whatever the memory is. `who` sent it is for the message.
    void check(std::string_view who) const;

    [[nodiscard]] GuestRange range() const noexcept { return {GuestAddress{address}, bytes}; }
    [[nodiscard]] std::span<const std::byte> as_bytes() const noexcept { return std::as_bytes(std::span(this, 1)); }
};
static_assert(sizeof(FrameHeader) == 32);

} // namespace vmm
