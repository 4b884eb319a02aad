// Connections of a migration without a listener, and handmade messages of a peer that knows the protocol.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "support/host_pipe.hpp"
#include "vmm/migration/channel.hpp"
#include "vmm/migration/frames.hpp"
#include "vmm/migration/messages.hpp"
#include "vmm/state/crc32c.hpp"

namespace vmm::testing {

/// Both ends of a connection within this process.
struct ChannelEnds {
    std::unique_ptr<Channel> source;
    std::unique_ptr<Channel> destination;

    explicit ChannelEnds(std::chrono::milliseconds patience, int source_stop = -1) {
        SocketPair sockets;
        source = std::make_unique<Channel>(std::move(sockets.ours), "the destination", source_stop);
        destination = std::make_unique<Channel>(std::move(sockets.theirs), "the source", -1);
        source->set_patience(patience);
        destination->set_patience(patience);
    }
};

/// A message's header as it is on the wire, without the code of messages.cpp.
inline std::vector<std::byte> message_header(std::uint32_t type, std::uint32_t body_bytes, std::uint32_t body_crc32c) {
    const std::uint32_t words[] = {type, body_bytes, body_crc32c}; // NOLINT(*-avoid-c-arrays)
    const std::uint32_t checksum = crc32c(std::as_bytes(std::span(words)));
    std::vector<std::byte> bytes(sizeof words + sizeof checksum);
    std::memcpy(bytes.data(), words, sizeof words);
    std::memcpy(bytes.data() + sizeof words, &checksum, sizeof checksum);
    return bytes;
}

/// A frame of `payload` with right checksums.
inline FrameHeader frame_of(FrameKind kind, std::uint64_t address, std::uint32_t bytes,
                            std::span<const std::byte> payload = {}) {
    FrameHeader header{.kind = kind,
                       .address = address,
                       .bytes = bytes,
                       .payload_bytes = static_cast<std::uint32_t>(payload.size()),
                       .payload_crc32c = crc32c(payload)};
    header.seal();
    return header;
}

} // namespace vmm::testing
