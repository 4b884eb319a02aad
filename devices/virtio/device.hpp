// What all virtio devices have in common, beneath any transport (virtio 1.2, chapter 2).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "devices/virtio/queue.hpp"

namespace vmm::devices::virtio {

class DriverLink;

/// Feature bits that belong to no type of device (virtio 1.2, chapter 6), as masks.
inline constexpr std::uint64_t kFeatureIndirectDescriptors = 1ULL << 28;
inline constexpr std::uint64_t kFeatureEventIdx = 1ULL << 29;
inline constexpr std::uint64_t kFeatureVersion1 = 1ULL << 32;
inline constexpr std::uint64_t kFeatureRingReset = 1ULL << 40;

/// Device types (virtio 1.2, chapter 5).
enum class DeviceId : std::uint32_t {
    kNet = 1,
    kBlock = 2,
    kConsole = 3,
    kEntropy = 4,
    kBalloon = 5,
    kVsock = 19,
};

/// What a device is, fixed when it is made.
struct Identity {
    DeviceId id{};
    std::string name;                       ///< for messages and threads, at most 15 bytes: "blk0"
    std::uint64_t features = 0;             ///< offered by the type; Negotiation adds those above
    std::vector<std::uint16_t> queue_sizes; ///< the largest of each queue
    std::vector<std::byte> config;          ///< the configuration space as it is at first
    std::vector<std::byte> config_writable; ///< by byte, which bits of it the driver may write; shorter: none
};

/// What the driver settled on when it set DRIVER_OK. A queue that it did not enable is empty.
struct Activation {
    std::uint64_t features = 0;
    std::vector<std::optional<Queue>> queues; ///< as many as Identity::queue_sizes
};

/// A descriptor of the host's that a device waits on, on loan.
struct Source {
    int fd = -1;
    std::uint32_t events = 0; ///< EPOLLIN, EPOLLOUT
    /// Another one for each descriptor that a device opens while it works: its number is soon that of another one, and
    /// whoever watched the old one would not know.
    std::uint64_t serial = 0;

    friend bool operator==(const Source&, const Source&) = default;
};

/// One virtio device, without its registers. It is a state machine that one thread drives: that thread watches the
/// doorbells and sources() and calls what they mean. None of these functions blocks, but for short system calls.
///
/// The guest is hostile: a driver that breaks a rule is answered by DriverLink::fail(), and nothing is thrown for
/// it. What the host refuses (a disk that is full) is answered to the guest as its type has it.
///
/// Threads: one, but for identity().
class Device {
  public:
    Device() = default;
    Device(const Device&) = delete;
    Device(Device&&) = delete;
    Device& operator=(const Device&) = delete;
    Device& operator=(Device&&) = delete;
    virtual ~Device() = default;

    [[nodiscard]] virtual const Identity& identity() const noexcept = 0;

    /// The driver is ready. `driver` is the way to it; it outlives this activation, which ends with stop() and
    /// is_idle().
    virtual void activate(Activation activation, DriverLink& driver) = 0;

    /// There is something in queue `index`, or was. Also called for queues that do not exist or are not enabled.
    virtual void doorbell(std::uint16_t index) = 0;

    /// What the thread has to watch; asked again after each call of this interface.
    [[nodiscard]] virtual std::vector<Source> sources() const { return {}; }
    /// One of them is ready.
    virtual void ready(int /*fd*/, std::uint32_t /*events*/) {}

    /// The driver resets the device: nothing more is taken from the queues and nothing more is pushed. Work that was
    /// given to the host is waited for: until is_idle(), ready() is called as before. Then the queues are gone, and
    /// activate() may come again. Also called, once, before destruction.
    virtual void stop() = 0;
    [[nodiscard]] virtual bool is_idle() const noexcept = 0;

    /// The driver resets one queue (VIRTIO_F_RING_RESET), under the same terms; other queues go on.
    virtual void stop_queue(std::uint16_t index) = 0;
    [[nodiscard]] virtual bool is_queue_idle(std::uint16_t index) const noexcept = 0;
    /// The driver enabled it again, or enabled it only after DRIVER_OK.
    virtual void restart_queue(std::uint16_t index, Queue queue) = 0;
};

} // namespace vmm::devices::virtio
