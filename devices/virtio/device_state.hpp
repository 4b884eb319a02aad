// The private state of each virtio device as a value, for snapshots and migration.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <variant>
#include <vector>

#include "devices/virtio/console_size.hpp"

namespace vmm::devices::virtio {

// Each of these holds what a device has besides its queues (Device::queue_states()) and its negotiation
// (Negotiation::State). A default value is the state of a new device. A value from an untrusted source may be used: the
// constructor throws Error if it does not belong to such a device.

struct BlockState {
    std::uint64_t sectors = 0; ///< size of its disk, in sectors of 512 bytes; 0: not known
    bool data_lost = false;    ///< a flush has failed: all later ones fail, too
    /// The bytes that were written and not yet flushed lie between these two. There are none if `end` is not greater.
    std::uint64_t unflushed_begin = UINT64_MAX;
    std::uint64_t unflushed_end = 0;

    friend bool operator==(const BlockState&, const BlockState&) = default;
};

/// The state of the other pairs of a network interface with several pairs of queues.
struct NetPairsState {
    std::uint16_t used = 1;                     ///< the number of pairs by which frames come to the guest
    std::vector<std::vector<std::byte>> frames; ///< like NetState::frame, of each pair but the first

    friend bool operator==(const NetPairsState&, const NetPairsState&) = default;
};

struct NetState {
    std::vector<std::byte> frame; ///< a frame for the guest that waits for a buffer, with its header; or empty
    bool link_up = true;          ///< the state of the link that the guest was told
    using Pairs = NetPairsState;
    std::optional<Pairs> pairs{}; ///< nothing: there is one pair

    friend bool operator==(const NetState&, const NetState&) = default;
};

/// A source of entropy has no state.
struct RngState {
    friend bool operator==(const RngState&, const RngState&) = default;
};

struct ConsoleState {
    std::vector<std::byte> output; ///< of the guest, not yet taken by the host
    std::vector<std::byte> input;  ///< for the guest, not yet taken by it
    std::uint64_t dropped_output_bytes = 0;
    std::optional<ConsoleSize> told_size; ///< the size of the terminal that the guest was told

    friend bool operator==(const ConsoleState&, const ConsoleState&) = default;
};

/// Connections are not saved, because their other ends are programs of the host. A device that is made from the state
/// tells the driver that they are gone.
struct VsockState {
    bool has_driver = false;          ///< there may be connections
    std::uint32_t guest_cid = 0;      ///< the CID that the guest was told; 0: not known
    std::uint32_t next_host_port = 0; ///< for the next connection that a program begins; 0: the first

    friend bool operator==(const VsockState&, const VsockState&) = default;
};

struct BalloonState {
    std::optional<std::uint32_t> target_pages; ///< what the guest is asked for; none: the constructor's target
    std::uint32_t told_pages = 0;              ///< the target that the guest was told
    /// By queue, how much of its first request is done: page numbers, or bytes of a report.
    std::vector<std::uint64_t> done;

    friend bool operator==(const BalloonState&, const BalloonState&) = default;
};

/// The plugged blocks are memory of the guest, besides the memory it booted with.
struct MemoryState {
    std::uint64_t address = 0; ///< where the device's region begins; 0: a new device
    std::uint64_t block_bytes = 0;
    std::vector<std::byte> plugged;    ///< a bit for each block of the region, the first in bit 0 of the first byte
    std::uint64_t requested_bytes = 0; ///< the amount that the guest is asked for
    std::uint64_t told_bytes = 0;      ///< the amount that the guest was told
    std::uint64_t done_blocks = 0;     ///< how many blocks of the first request in the queue are done

    friend bool operator==(const MemoryState&, const MemoryState&) = default;
};

/// The state of any device; std::monostate for a device that has no state to save.
using DeviceState =
    std::variant<std::monostate, BlockState, NetState, RngState, ConsoleState, VsockState, BalloonState, MemoryState>;

} // namespace vmm::devices::virtio
