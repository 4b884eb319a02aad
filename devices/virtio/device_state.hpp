// What a virtio device keeps for itself, as a value: for snapshots and migration.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <variant>
#include <vector>

#include "devices/virtio/console_size.hpp"

namespace vmm::devices::virtio {

// Each of these is what a device has beside its queues (Device::queue_states()) and what its driver negotiated
// (Negotiation::State). A default one is that of a new device. Whoever makes a device from one need not trust it: the
// constructor throws Error if it is that of no such device.

struct BlockState {
    std::uint64_t sectors = 0; ///< of its disk, of 512 bytes; 0: not known
    bool data_lost = false;    ///< a flush has failed: all later ones fail, too
    /// The bytes of the disk that were written and not yet flushed lie between these two; none if `end` is not greater.
    std::uint64_t unflushed_begin = UINT64_MAX;
    std::uint64_t unflushed_end = 0;

    friend bool operator==(const BlockState&, const BlockState&) = default;
};

/// What a network of several pairs of queues has beside NetState's other members.
struct NetPairsState {
    std::uint16_t used = 1;                     ///< by how many of them frames come to the guest
    std::vector<std::vector<std::byte>> frames; ///< as NetState::frame, of each pair but the first

    friend bool operator==(const NetPairsState&, const NetPairsState&) = default;
};

struct NetState {
    std::vector<std::byte> frame; ///< one for the guest that no buffer was there for, with its header; or empty
    bool link_up = true;          ///< what the guest was told of its link
    using Pairs = NetPairsState;
    std::optional<Pairs> pairs{}; ///< nothing: there is one pair

    friend bool operator==(const NetState&, const NetState&) = default;
};

/// A source of entropy keeps nothing.
struct RngState {
    friend bool operator==(const RngState&, const RngState&) = default;
};

struct ConsoleState {
    std::vector<std::byte> output; ///< of the guest, not yet taken by the host
    std::vector<std::byte> input;  ///< for the guest, not yet taken by it
    std::uint64_t dropped_output_bytes = 0;
    std::optional<ConsoleSize> told_size; ///< what the guest was told of the terminal

    friend bool operator==(const ConsoleState&, const ConsoleState&) = default;
};

/// Connections are not kept: their other ends are programs of the host. A device that is made from the state tells the
/// driver that they are gone.
struct VsockState {
    bool has_driver = false;          ///< there may be connections
    std::uint32_t guest_cid = 0;      ///< what the guest was told; 0: not known
    std::uint32_t next_host_port = 0; ///< for the next connection that a program begins; 0: the first

    friend bool operator==(const VsockState&, const VsockState&) = default;
};

struct BalloonState {
    std::optional<std::uint32_t> target_pages; ///< what the guest is asked for; none: what the device is made with
    std::uint32_t told_pages = 0;              ///< what it was told of that
    /// By queue, how much of the first request in it is done: page numbers, or bytes of what is reported.
    std::vector<std::uint64_t> done;

    friend bool operator==(const BalloonState&, const BalloonState&) = default;
};

/// The blocks that are plugged are the guest's memory, beside what it booted with.
struct MemoryState {
    std::uint64_t address = 0; ///< where the device's region begins; 0: a new device
    std::uint64_t block_bytes = 0;
    std::vector<std::byte> plugged;    ///< a bit for each block of the region, the first in bit 0 of the first byte
    std::uint64_t requested_bytes = 0; ///< what the guest is asked for
    std::uint64_t told_bytes = 0;      ///< what it was told of that
    std::uint64_t done_blocks = 0;     ///< how many blocks of the first request in the queue are done

    friend bool operator==(const MemoryState&, const MemoryState&) = default;
};

/// The state of any device; std::monostate for a device that cannot say it.
using DeviceState =
    std::variant<std::monostate, BlockState, NetState, RngState, ConsoleState, VsockState, BalloonState, MemoryState>;

} // namespace vmm::devices::virtio
