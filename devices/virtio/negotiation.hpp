// What a virtio driver negotiates with a device, independent of the transport (virtio 1.2, 2.1, 2.2, 2.5, 2.6, 3.1).
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "devices/virtio/device.hpp"
#include "devices/virtio/queue.hpp"
#include "kvm/host/guest_memory.hpp"

namespace vmm::devices::virtio {

/// Status bits (virtio 1.2, 2.1).
inline constexpr std::uint8_t kStatusAcknowledge = 1;
inline constexpr std::uint8_t kStatusDriver = 2;
inline constexpr std::uint8_t kStatusDriverOk = 4;
inline constexpr std::uint8_t kStatusFeaturesOk = 8;
inline constexpr std::uint8_t kStatusNeedsReset = 64;
inline constexpr std::uint8_t kStatusFailed = 128;

/// Holds the features, status, queues and configuration space of one device, and hands them to the device's thread when
/// the driver is ready. A transport owns one, and maps its registers to it. It enforces the order of 3.1.1: if a driver
/// sets a status bit too early or writes a frozen register, the write is ignored or the driver must reset.
///
/// Where the specification leaves a choice to the device:
/// - The driver's writes to the configuration space have an effect from FEATURES_OK on, and are lost at a reset.
/// - Status bits stay set until reset, whatever is written. A bit has an effect only if those before it are set:
///   ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK; several may be set at once. After FAILED or DEVICE_NEEDS_RESET, only
///   FAILED can still be set.
/// - FEATURES_OK is refused if a feature was not offered, or without VIRTIO_F_VERSION_1.
/// - A queue can be enabled from FEATURES_OK on. It stays disabled if its geometry is not possible (see Queue::make),
///   or if it is longer than its maximum; the driver may then correct the geometry. While it is enabled, the geometry
///   is frozen.
/// - If the driver disables a queue that the device has, the queue is stopped as by a reset, but keeps its geometry. It
///   reads as enabled until the device has given it back.
///
/// A reset takes as long as the device has work with the host. Until then the status reads as before and the driver's
/// writes are ignored; afterwards it reads as 0. Before DRIVER_OK a reset is immediate.
///
/// A device that may not access memory (set_reach()) stands still: it is not activated, and none of its queues begins
/// or ends. A reset is still served.
///
/// Threads: any thread may use the guest's side; only the device's thread uses the device's side; both at the same
/// time.
class Negotiation {
  public:
    /// Callbacks on the thread of the writer, without a lock held. Each may be empty.
    struct Hooks {
        /// There is work: call take_work() on the device's thread.
        std::function<void()> work;
        /// The driver rang for queue `index`, which may have any value. It is not called if ioeventfds catch the
        /// doorbell.
        std::function<void(std::uint16_t index)> doorbell;
        /// How long a write that stops the device or a queue waits, after work(), until the device's thread has done
        /// it. Zero means that it does not wait; it is for owners that do both on one thread.
        ///
        /// A driver of version 2 of the MMIO transport continues as soon as the write is done: Linux does not read
        /// Status back, and frees the queues. With a patience, the device has stopped using the queues by then. The
        /// vCPU waits for that time.
        std::chrono::milliseconds patience{0};
        /// Called if the patience has run out, and the device still writes to memory that the driver frees next. The
        /// callback must not let the guest continue.
        std::function<void()> overdue = {};
        /// Returns true if the guest will not continue anyway, so that the write need not wait.
        std::function<bool()> is_ending = {};
    };

    /// One queue, as the driver negotiated it.
    struct QueueState {
        QueueGeometry geometry; ///< its size is 0 if the written value does not fit in it
        bool is_enabled = false;
        /// The device's position in the queue; empty if the device does not have it.
        std::optional<Queue::State> in_device;

        friend bool operator==(const QueueState&, const QueueState&) = default;
    };

    /// The whole negotiation as a value. If the driver has asked for a reset, it is finished in the value, so a device
    /// that continues from it need not stop anything.
    struct State {
        std::uint32_t status = 0;
        std::uint64_t driver_features = 0;
        bool accepts_unknown = false; ///< the driver accepted a feature beyond bit 63
        std::vector<QueueState> queues;
        std::uint32_t config_generation = 0;
        std::vector<std::byte> config;       ///< as the driver reads it
        std::vector<std::byte> reset_config; ///< as after a reset: without what the driver wrote
        std::string failure;                 ///< see failure()

        friend bool operator==(const State&, const State&) = default;
    };

    /// `forget` is called on each reset, to set the transport's own registers to their initial values. A lock is held
    /// then, so it must do no more than assign. `memory` must outlive the negotiation.
    Negotiation(const Identity& identity, const GuestMemory& memory, Hooks hooks, std::function<void()> forget);
    /// Continues from `state`. If the device was activated, the first take_work() activates it with the queues at their
    /// old positions. Throws Error if `state` does not belong to a device with this identity and this memory.
    Negotiation(const Identity& identity, const GuestMemory& memory, Hooks hooks, std::function<void()> forget,
                State state);

    [[nodiscard]] const Identity& identity() const noexcept { return identity_; }
    [[nodiscard]] const GuestMemory& memory() const noexcept { return memory_; }

    // ---- The guest's side

    /// 32 of the offered features: bits 0 to 31 for 0, 32 to 63 for 1, none beyond.
    [[nodiscard]] std::uint32_t offered_features(std::uint32_t half) const noexcept;
    /// The features that the driver has accepted so far, by halves.
    [[nodiscard]] std::uint32_t accepted_features(std::uint32_t half) const;
    /// The driver accepts the features `bits` of that half.
    void accept_features(std::uint32_t half, std::uint32_t bits);

    [[nodiscard]] std::uint32_t status() const;
    /// The driver writes the status; 0 is a reset.
    void write_status(std::uint32_t value);
    /// True if a reset is under way. The driver's writes are ignored meanwhile.
    [[nodiscard]] bool is_resetting() const;

    [[nodiscard]] std::uint32_t config_generation() const;
    /// Fills `data` from `offset` on. Bytes beyond the end are all ones.
    void read_config(std::uint64_t offset, std::span<std::byte> data) const noexcept;
    void write_config(std::uint64_t offset, std::span<const std::byte> data) noexcept;

    /// The facts that the driver may read about a queue.
    struct QueueView {
        QueueGeometry geometry;
        std::uint16_t largest = 0; ///< the most entries that it may have
        bool is_enabled = false;
        bool is_resetting = false;
    };
    /// Nothing if there is no such queue.
    [[nodiscard]] std::optional<QueueView> queue(std::uint32_t index) const;
    enum class QueuePart { kDescriptors, kDriverArea, kDeviceArea };
    // These do nothing for queues that do not exist.
    void set_queue_size(std::uint32_t index, std::uint32_t size);
    /// Sets bits 0 to 31 of the address of a part for half 0, 32 to 63 for half 1.
    void set_queue_address(std::uint32_t index, QueuePart part, unsigned half, std::uint32_t bits);
    /// 1 enables the queue, 0 disables it; other values are ignored.
    void enable_queue(std::uint32_t index, std::uint32_t value);
    /// VIRTIO_F_RING_RESET (2.6.1). Does nothing unless it was negotiated.
    void reset_queue(std::uint32_t index);

    /// The driver rings for queue `value`. Does nothing unless the driver is ready.
    void ring(std::uint32_t value);

    /// Sets whether the device may read and write the guest's memory; at first it may. If it returns true, the caller
    /// must call follow_reach() after it has released its locks.
    [[nodiscard]] bool set_reach(bool reaches) noexcept;
    /// Makes the device's thread act on the change. If the device may no longer access memory, the call waits as for a
    /// reset.
    void follow_reach();

    // ---- The device's side

    /// What the driver has asked of the device's thread since the last call. Several members may be set; they must be
    /// handled in this order.
    struct Work {
        bool reset = false;                      ///< Device::stop(); when it is idle, finish_reset()
        std::optional<Activation> activation;    ///< Device::activate()
        std::vector<std::uint16_t> queue_resets; ///< Device::stop_queue(); when idle, finish_queue_reset()
        /// Device::restart_queue()
        std::vector<std::pair<std::uint16_t, Queue>> restarts;
        /// The device may not access memory: call Device::pause(), and when it is paused, finish_standing(). Everything
        /// but a reset waits until it may.
        bool stands = false;
    };
    enum class Take { kAll, kReset };
    /// Returns the new work. If the device was never activated, a reset is finished here and does not appear in it.
    /// With Take::kReset, which is for a paused device, all work but a reset waits for a later call.
    [[nodiscard]] Work take_work(Take take = Take::kAll);
    /// Must be called once after each Work::reset.
    void finish_reset();
    /// Reports that the device stands still or is not activated. Does nothing if it may access memory again by now.
    void finish_standing();
    /// Must be called once after each of Work::queue_resets. Does nothing if the device was reset since.
    void finish_queue_reset(std::uint16_t index);

    /// True if the device is activated. Takes no lock.
    [[nodiscard]] bool is_active() const noexcept { return activated_.load(std::memory_order_relaxed); }

    /// See DriverLink::change_config(). Returns true if the driver must be notified.
    [[nodiscard]] bool change_config(std::size_t offset, std::span<const std::byte> bytes);
    /// The present content of the configuration space, including what the driver wrote.
    [[nodiscard]] std::vector<std::byte> config() const;
    /// See DriverLink::fail(). Returns true if the driver must be notified.
    [[nodiscard]] bool fail(std::string_view why);
    /// Why the device needs a reset; empty if it does not.
    [[nodiscard]] std::string failure() const;

    /// The whole negotiation as a value. `queues` are the device's positions in its queues (Device::queue_states()).
    [[nodiscard]] State state(std::span<const std::optional<Queue::State>> queues) const;

  private:
    /// How far the device's thread is with a stop that the driver has asked for.
    enum class Stop {
        kNone,
        kRequested,
        kTaken, ///< take_work() has told the device's thread
    };

    /// The progress of the device's thread with a queue of the driver.
    struct QueueProgress {
        bool in_device = false;    ///< the device has the Queue
        bool is_resetting = false; ///< the driver asked for a reset, not only for a stop
        Stop stop = Stop::kNone;   ///< used only while the device has the queue
    };

    /// What remains to be done for a write after the lock is released.
    enum class After {
        kNothing,
        kWork,        ///< call Hooks::work
        kWorkAndWait, ///< and wait until nothing is being stopped
    };

    void follow_up(After after);

    // The members below must be called with the lock held.
    [[nodiscard]] After take_status(std::uint32_t value);
    [[nodiscard]] After take_enable(std::size_t index, std::uint32_t value);
    [[nodiscard]] After take_queue_reset(std::size_t index);
    /// The geometry of queue `index`; null if the driver may not change it now.
    [[nodiscard]] QueueGeometry* changeable_geometry(std::uint32_t index) noexcept;
    /// Returns false if the patience ran out first, so that Hooks::overdue must be called.
    [[nodiscard]] bool wait_until_stopped();
    [[nodiscard]] bool are_features_acceptable() const noexcept;
    [[nodiscard]] bool has_status(std::uint32_t bits) const noexcept { return (state_.status & bits) == bits; }
    [[nodiscard]] QueueState fresh_queue(std::size_t index) const noexcept;
    [[nodiscard]] Queue::State fresh_queue_state(const QueueGeometry& geometry) const noexcept;
    [[nodiscard]] QueueState stopped_queue(std::size_t index) const noexcept;
    [[nodiscard]] bool is_stopping() const noexcept;
    void reset(State& state) const;
    void become_reset();
    /// Empty if `state_` can belong to such a device.
    [[nodiscard]] std::string_view why_impossible() const;

    const Identity identity_;
    const std::uint64_t offered_features_;
    const GuestMemory& memory_;
    const Hooks hooks_;
    const std::function<void()> forget_;

    /// Only the device's thread writes it.
    std::atomic<bool> activated_ = false;

    mutable std::mutex mutex_; ///< guards all below
    std::condition_variable stopped_;
    /// `in_device` of its queues is set only for queues that the device has not received yet: it is where they
    /// continue. For the other queues the device itself knows the position.
    State state_;
    Stop reset_ = Stop::kNone;
    bool reaches_ = true;
    bool is_to_stand_ = false;            ///< the device's thread has not reported yet that the device stands still
    std::vector<QueueProgress> progress_; ///< by queue
};

} // namespace vmm::devices::virtio
