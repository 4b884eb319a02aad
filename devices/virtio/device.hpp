// What all virtio devices have in common, beneath any transport (virtio 1.2, chapter 2).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "devices/virtio/device_state.hpp"
#include "devices/virtio/driver_link.hpp"
#include "devices/virtio/queue.hpp"

namespace vmm::devices::virtio {

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
    kMemory = 24,
};

/// What a device is, fixed when it is made.
struct Identity {
    DeviceId id{};
    std::string name;                       ///< for messages and threads, at most 15 bytes: "blk0"
    std::uint64_t features = 0;             ///< offered by the type; Negotiation adds those above
    std::vector<std::uint16_t> queue_sizes; ///< by queue, the most entries it may have
    /// How many queues there were in the first version of the device: a state that has fewer than there are now, but as
    /// many as these, is of that version, and its driver has never seen the others. 0: as many as there are.
    std::size_t first_queues = 0;
    std::vector<std::byte> config;          ///< the configuration space as it is at first
    std::vector<std::byte> config_writable; ///< by byte, which bits the driver may write; none beyond its end
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
    /// Changes whenever the device opens another descriptor: numbers are reused, and epoll would go on watching the
    /// closed file.
    std::uint64_t serial = 0;

    friend bool operator==(const Source&, const Source&) = default;
};

/// Some queues of a device that have a thread of their own, so that several processors work for one device.
///
/// Threads: one, but for queues(). The device's thread may call the device's functions meanwhile, and the device keeps
/// the two apart. After Device::stop() or pause() has returned, the lane does nothing more.
class Lane {
  public:
    Lane() = default;
    Lane(const Lane&) = delete;
    Lane& operator=(const Lane&) = delete;

    /// The queues whose doorbells the thread watches.
    [[nodiscard]] virtual QueueSet queues() const noexcept = 0;
    /// As the functions of Device have it.
    virtual void doorbell(std::uint16_t index) = 0;
    [[nodiscard]] virtual std::vector<Source> sources() const = 0;
    virtual void ready(int fd, std::uint32_t events) = 0;

  protected:
    ~Lane() = default;
};

/// One virtio device, without its registers. It is a state machine that one thread drives: the thread watches the
/// doorbells and sources(), and calls the functions that belong to them. No function blocks, but for short system
/// calls.
///
/// The guest is hostile. If a driver breaks a rule, the device calls DriverLink::fail() and throws nothing. If the host
/// refuses something (a disk is full), the device answers as its type has it.
///
/// A device that answers each request at once, as most do, derives from SynchronousDevice and says what a turn does:
///
///     void Rng::serve() {
///         while (take(kRequests, chain_)) {
///             working_queue(kRequests)->push(chain_.head, fill(chain_));
///         }
///     } // The driver is notified after the turn, if it wants that.
///
/// Its thread drives it like this (VirtioThread):
///
///     negotiation.take_work()    ->  device.activate(...), or stop(), stop_queue(), restart_queue()
///     a doorbell's eventfd       ->  device.doorbell(index)
///     one of device.sources()    ->  device.ready(fd, events)
///
/// Threads: one, but for identity() and lanes().
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

    /// The driver rang for queue `index`, which may be empty by now. It may also not exist or not be enabled.
    virtual void doorbell(std::uint16_t index) = 0;

    /// What the thread has to watch. It asks again after each call of this interface.
    [[nodiscard]] virtual std::vector<Source> sources() const { return {}; }
    /// One of them is ready.
    virtual void ready(int /*fd*/, std::uint32_t /*events*/) {}

    /// What is served by other threads, each lane by one. They are the same as long as there is the device. Threads:
    /// any.
    [[nodiscard]] virtual std::vector<Lane*> lanes() noexcept { return {}; }

    /// The driver resets the device. Nothing more is taken from the queues and nothing more is pushed. Work that was
    /// given to the host is waited for: until is_idle(), ready() is called as before. Then the queues are gone, and
    /// activate() may come again. The owner also calls this once before destruction.
    virtual void stop() = 0;
    [[nodiscard]] virtual bool is_idle() const noexcept = 0;

    /// The driver resets one queue (VIRTIO_F_RING_RESET), under the same terms; other queues go on.
    virtual void stop_queue(std::uint16_t index) = 0;
    [[nodiscard]] virtual bool is_queue_idle(std::uint16_t index) const noexcept = 0;
    /// The driver enabled the queue again, or for the first time after DRIVER_OK.
    virtual void restart_queue(std::uint16_t index, Queue queue) = 0;

    // --- Its state --------------------------------------------------------------------------------------------------
    // A device is saved while it is paused: all that it has taken from its queues has gone back to the driver, or back
    // into the queue. Another device that is made from state(), and that a transport made from its state activates
    // with queue_states(), goes on where this one stopped. A device that overrides none of these cannot be paused.

    /// Takes nothing more from the queues. Work that was given to the host is waited for, and goes back to the driver:
    /// until is_paused(), ready() is called as before. What was taken and has not begun goes back into its queue. From
    /// is_paused() on only resume(), stop() and const functions are called, and sources() are not watched.
    virtual void pause() {}
    [[nodiscard]] virtual bool is_paused() const noexcept { return false; }
    /// Goes on, also if it is not paused yet. Looks at all queues, because doorbells may have gone by.
    virtual void resume() {}
    /// Where it is in each queue; empty if it is not activated. Only while is_paused().
    [[nodiscard]] virtual std::vector<std::optional<Queue::State>> queue_states() const { return {}; }
    /// What it keeps beside that. Only while is_paused().
    [[nodiscard]] virtual DeviceState state() const { return {}; }

    /// Gives up what of the host's only one may have, so that the device that goes on from its state can have it; and
    /// takes it again. Only while is_paused(), which it stays between the two. With `flush`, what it wrote can be read
    /// on another host. Both throw Error.
    virtual void release_host(bool /*flush*/) {}
    virtual void reclaim_host() {}
};

} // namespace vmm::devices::virtio
