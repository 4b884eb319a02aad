// What all virtio devices have in common, independent of the transport (virtio 1.2, chapter 2).
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

/// The identity of a device, which is fixed when it is made.
struct Identity {
    DeviceId id{};
    std::string name;                       ///< for messages and threads, at most 15 bytes: "blk0"
    std::uint64_t features = 0;             ///< offered by the type; Negotiation adds those above
    std::vector<std::uint16_t> queue_sizes; ///< by queue, the most entries that it may have
    /// The number of queues in the first version of the device; 0: as many as now. A state with fewer queues than now,
    /// but with at least this number, belongs to that version, and its driver has never seen the others.
    std::size_t first_queues = 0;
    std::vector<std::byte> config;          ///< the configuration space at first
    std::vector<std::byte> config_writable; ///< by byte, the bits that the driver may write; none beyond its end
};

/// The result of the negotiation when the driver set DRIVER_OK. A queue that it did not enable is empty.
struct Activation {
    std::uint64_t features = 0;
    std::vector<std::optional<Queue>> queues; ///< as many as Identity::queue_sizes
};

/// A descriptor of the host that a device waits on, on loan.
struct Source {
    int fd = -1;
    std::uint32_t events = 0; ///< EPOLLIN, EPOLLOUT
    /// Changes whenever the device opens another descriptor, because numbers are reused, and epoll would go on watching
    /// the closed file.
    std::uint64_t serial = 0;

    friend bool operator==(const Source&, const Source&) = default;
};

/// Some queues of a device that have their own thread, so that several processors work for one device.
///
/// Threads: one, except for queues(). The device's thread may call the device's functions at the same time, and the
/// device locks out one of the two. After Device::stop() or pause() has returned, the lane does nothing more.
class Lane {
  public:
    Lane() = default;
    Lane(const Lane&) = delete;
    Lane& operator=(const Lane&) = delete;

    /// The queues whose doorbells the thread watches.
    [[nodiscard]] virtual QueueSet queues() const noexcept = 0;
    /// Like the functions of Device with the same names.
    virtual void doorbell(std::uint16_t index) = 0;
    [[nodiscard]] virtual std::vector<Source> sources() const = 0;
    virtual void ready(int fd, std::uint32_t events) = 0;

  protected:
    ~Lane() = default;
};

/// One virtio device, without its registers. It is a state machine that one thread drives: the thread watches the
/// doorbells and sources(), and calls the functions that belong to them. No function blocks, except in short system
/// calls.
///
/// The guest is hostile. If a driver breaks a rule, the device calls DriverLink::fail() and throws nothing. If the host
/// refuses something (a disk is full), the device answers as the specification of its type says.
///
/// A device that answers each request at once, as most do, derives from SynchronousDevice and implements one turn:
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
/// Threads: one, except for identity() and lanes().
class Device {
  public:
    Device() = default;
    Device(const Device&) = delete;
    Device(Device&&) = delete;
    Device& operator=(const Device&) = delete;
    Device& operator=(Device&&) = delete;
    virtual ~Device() = default;

    [[nodiscard]] virtual const Identity& identity() const noexcept = 0;

    /// The driver is ready. `driver` is the connection to it, and outlives this activation, which ends with stop() and
    /// is_idle().
    virtual void activate(Activation activation, DriverLink& driver) = 0;

    /// The driver rang for queue `index`. The queue may be empty by now, may not exist, or may not be enabled.
    virtual void doorbell(std::uint16_t index) = 0;

    /// The descriptors that the thread must watch. It asks again after each call of this interface.
    [[nodiscard]] virtual std::vector<Source> sources() const { return {}; }
    /// One of the sources is ready.
    virtual void ready(int /*fd*/, std::uint32_t /*events*/) {}

    /// The parts that other threads serve, one thread for each lane. They stay the same as long as the device lives.
    /// Threads: any.
    [[nodiscard]] virtual std::vector<Lane*> lanes() noexcept { return {}; }

    /// The driver resets the device. The device takes nothing more from the queues and pushes nothing more, and waits
    /// for work that is with the host: until is_idle(), ready() is called as before. Then the queues are gone, and
    /// activate() may come again. The owner also calls this once before destruction.
    virtual void stop() = 0;
    [[nodiscard]] virtual bool is_idle() const noexcept = 0;

    /// The driver resets one queue (VIRTIO_F_RING_RESET), with the same rules. Other queues go on.
    virtual void stop_queue(std::uint16_t index) = 0;
    [[nodiscard]] virtual bool is_queue_idle(std::uint16_t index) const noexcept = 0;
    /// The driver enabled the queue again, or for the first time after DRIVER_OK.
    virtual void restart_queue(std::uint16_t index, Queue queue) = 0;

    // ---- Its state
    // A device is saved while it is paused: all requests that it had taken have gone back to the driver or into the
    // queue. To continue, another device is made from state(), and a transport made from its own state activates it
    // with queue_states(). A device that overrides none of these functions cannot be paused.

    /// Takes nothing more from the queues. Work that is with the host is finished and goes back to the driver: until
    /// is_paused(), ready() is called as before. Requests that have not begun go back into their queue. After
    /// is_paused() only resume(), stop() and const functions may be called, and sources() are not watched.
    virtual void pause() {}
    [[nodiscard]] virtual bool is_paused() const noexcept { return false; }
    /// Continues, even if the device is not paused yet. Checks all queues, because doorbells may have been missed.
    virtual void resume() {}
    /// The device's position in each queue; empty if it is not activated. Only while is_paused().
    [[nodiscard]] virtual std::vector<std::optional<Queue::State>> queue_states() const { return {}; }
    /// The rest of the device's state. Only while is_paused().
    [[nodiscard]] virtual DeviceState state() const { return {}; }

    /// release_host() gives up resources of the host that only one device may have, so that the device that continues
    /// from its state can have them; reclaim_host() takes them again. They may be called only while is_paused(). With
    /// `flush`, another host can read what the device wrote. Both throw Error.
    virtual void release_host(bool /*flush*/) {}
    virtual void reclaim_host() {}
};

} // namespace vmm::devices::virtio
