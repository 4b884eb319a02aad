// The configurations of a machine's devices.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "devices/disk_io_kind.hpp"
#include "devices/virtio/console_size.hpp"
#include "kvm/host/export.hpp"
#include "vmm/limits.hpp"

VMM_API_BEGIN
namespace vmm {

/// Output of the guest that reached nobody.
struct LostOutput {
    std::uint64_t bytes = 0;
    std::string why{}; ///< text for people; empty: not known
};

/// What the guest's serial port, or its virtio console, is connected to. The descriptors are loans that outlive the
/// machine; -1 means not connected. The machine does not change the output descriptor's flags, and a reader that does
/// not read never stalls the guest.
struct CharacterConfig {
    int input_fd = -1;
    int output_fd = -1;
    /// It is called with what the guest writes, on the thread of Machine::run(), and should return soon. `output_fd`
    /// gets the same bytes if it is there. What it throws ends the run and comes out of run().
    std::function<void(std::span<const std::byte>)> sink;
    /// Returns how much `sink` could not pass on. It is called once on the thread of Machine::run(), when the guest has
    /// ended and `sink` has been given everything, and it may wait a moment for a slow reader. If it is empty, nothing
    /// counts as lost in `sink`.
    std::function<LostOutput()> sink_lost;
    /// Whether Ctrl-A is a prefix for commands to the machine, for a person at a terminal (x: stop, h: help, Ctrl-A:
    /// Ctrl-A itself).
    bool escape_keys = false;
    /// Returns the size of the terminal, if there is one. It is called again when `resized_fd` (an eventfd) becomes
    /// readable. It is for a virtio console, because a serial port cannot tell the guest a size.
    std::function<std::optional<devices::virtio::ConsoleSize>()> size;
    int resized_fd = -1;
    /// It is called for Ctrl-A h, on the thread of Machine::run(). It may be empty.
    std::function<void()> show_help;
};

/// A raw disk image or block device that the guest sees as a virtio block device. The machine never interprets its
/// content.
struct DiskConfig {
    std::string path{};
    bool read_only = false;
    bool direct = false; ///< whether I/O bypasses the host's page cache (O_DIRECT)
    unsigned queues = 1; ///< 1 to kMaxQueues
    std::string id{};    ///< the serial number the guest sees, at most kMaxIdBytes; empty: none
    /// Whether other writers of the disk are kept out, in this process or another. If there is such a writer already,
    /// the disk is refused.
    bool lock = true;
    /// The size of the sectors that the guest sees, in bytes: one of limits::kSectorBytes, whatever the host's are.
    unsigned sector_bytes = limits::kSectorBytes.front();
    devices::DiskIoKind io = devices::DiskIoKind::kAuto;
    /// Whether an interrupt may wait for a few others, at most 16 ms (docs/devices.md). A guest with one request at a
    /// time is served no sooner without moderation, and a guest with many takes more exits.
    bool moderation = true;

    static constexpr unsigned kMaxQueues = limits::kMaxDiskQueues;
    static constexpr std::size_t kMaxIdBytes = limits::kMaxDiskIdBytes;

    /// Throws Error if no host can give what it asks for.
    void check() const;

    friend bool operator==(const DiskConfig&, const DiskConfig&) = default;
};

/// A port of the host at which the guest is reached (NetConfig::user).
struct PortForward {
    bool udp = false;
    std::string host_address = "127.0.0.1"; ///< an IPv4 address of the host
    std::uint16_t host_port = 0;
    std::uint16_t guest_port = 0;

    friend bool operator==(const PortForward&, const PortForward&) = default;
};

/// A network interface of the guest: either on a tap, or in user mode.
struct NetConfig {
    std::string tap{};                   ///< the host's tap interface it is connected to
    std::string mac{};                   ///< "52:54:00:12:34:56"; empty: it is made from the interface's name
    bool user = false;                   ///< user mode: through the program passt, which needs no privileges
    bool host_loopback = false;          ///< with `user`: whether the guest may reach the host itself
    std::vector<PortForward> forwards{}; ///< with `user`
    /// Pairs of a receive queue and a transmit queue, each with a thread of its own: 1 to kMaxQueues. More than one
    /// pair needs a tap with several queues.
    unsigned queues = 1;

    static constexpr unsigned kMaxQueues = limits::kMaxNetQueues;

    /// Throws Error if no host can give what it asks for.
    void check() const;

    friend bool operator==(const NetConfig&, const NetConfig&) = default;
};

/// Stream sockets between guest and host, carried over unix sockets (docs/devices.md).
struct VsockConfig {
    std::string path{};    ///< the unix socket that programs connect to, at most 96 bytes
    std::uint32_t cid = 3; ///< the guest's context id, kMinCid to kMaxCid

    static constexpr std::uint32_t kMinCid = 3; ///< the ids below are for the hypervisor, loopback and the host
    static constexpr std::uint32_t kMaxCid = 0xfffffffe;

    /// Throws Error if no host can give what it asks for.
    void check() const;

    friend bool operator==(const VsockConfig&, const VsockConfig&) = default;
};

/// A memory balloon: the guest gives memory that it can do without back to the host.
struct BalloonConfig {
    std::uint64_t target_bytes = 0; ///< how much the guest is asked for; whole pages of 4 KiB, less than its memory
    bool reporting = false;         ///< whether the guest also says which pages are free

    /// Throws Error if a guest of `memory_bytes` cannot have it.
    void check(std::uint64_t memory_bytes) const;

    friend bool operator==(const BalloonConfig&, const BalloonConfig&) = default;
};

} // namespace vmm
VMM_API_END
