// What a virtio driver negotiates with a device, whatever the transport (virtio 1.2, 2.1, 2.2, 2.5, 2.6 and 3.1).
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

/// Holds features, status, queues and configuration space of one device, and hands them to the device's thread when the
/// driver is ready. A transport owns one, and maps its registers to it. It enforces the order of 3.1.1: a driver that
/// sets a status bit before its time, or writes a frozen register, is ignored or has to reset.
///
/// Where the specification leaves a choice to the device:
/// - The driver's writes to the configuration space count from FEATURES_OK on, and are gone with a reset.
/// - Status bits stay set until reset, whatever is written. A bit counts only if those before it are set: ACKNOWLEDGE,
///   DRIVER, FEATURES_OK, DRIVER_OK; several may come at once. After FAILED and DEVICE_NEEDS_RESET none is taken.
/// - FEATURES_OK is refused for features that were not offered, and without VIRTIO_F_VERSION_1.
/// - A queue is enabled from FEATURES_OK on. It stays disabled if no queue can be there (see Queue::make), or if it is
///   longer than its maximum; the driver may then correct its geometry. While it is enabled the geometry is frozen.
/// - Disabling a queue that the device has stops it as a reset of the queue does, but the geometry remains. The queue
///   reads as enabled until the device has let go of it.
///
/// A reset takes as long as the device has work with the host: the status reads as before until then, and as 0 after.
/// Meanwhile the driver's writes are ignored. Before DRIVER_OK a reset is immediate.
///
/// A device that may not reach memory (set_reach()) stands still: it is not activated, and no queue of it begins or
/// ends. A reset is served all the same.
///
/// Threads: the guest's side any; the device's side one, the device's thread; both at once.
class Negotiation {
  public:
    /// What it calls on the thread of whoever wrote, without a lock held. Each may be empty.
    struct Hooks {
        /// There is something to take: call take_work() on the device's thread.
        std::function<void()> work;
        /// The driver rang for queue `index`, any value. It is never called where ioeventfds catch the doorbell.
        std::function<void(std::uint16_t index)> doorbell;
        /// How long a write that stops the device or a queue waits, after work(), for the device's thread to finish
        /// that. Zero, for those who do both on one thread: it does not wait.
        ///
        /// A driver of version 2 of the MMIO transport goes on as soon as the write is done: Linux reads no Status
        /// back, and frees the queues. If there is a time here the device is out of them by then. The vCPU stands still
        /// so long.
        std::chrono::milliseconds patience{0};
        /// The patience is at its end, and the device still writes to memory that the driver frees next. Whoever is
        /// told must not let the guest run on.
        std::function<void()> overdue = {};
        /// Whether the guest will not run on anyway, so that nobody has to be waited for.
        std::function<bool()> is_ending = {};
    };

    /// One queue, as the driver negotiated it.
    struct QueueState {
        QueueGeometry geometry; ///< its size is 0 if what was written does not fit in it
        bool is_enabled = false;
        /// Where the device is in it; empty if the device does not have it.
        std::optional<Queue::State> in_device;

        friend bool operator==(const QueueState&, const QueueState&) = default;
    };

    /// All of it as a value. A reset that the driver has asked for is finished in it, so that nothing is to be stopped
    /// in a device that goes on from it.
    struct State {
        std::uint32_t status = 0;
        std::uint64_t driver_features = 0;
        bool accepts_unknown = false; ///< the driver accepted a feature beyond bit 63
        std::vector<QueueState> queues;
        std::uint32_t config_generation = 0;
        std::vector<std::byte> config;       ///< as the driver reads it
        std::vector<std::byte> reset_config; ///< as it is after a reset: without what the driver wrote
        std::string failure;                 ///< see failure()

        friend bool operator==(const State&, const State&) = default;
    };

    /// `forget` is called on each reset, to make the transport's own registers as they are at first. A lock is held
    /// then, so it does no more than assign. `memory` outlives the negotiation.
    Negotiation(const Identity& identity, const GuestMemory& memory, Hooks hooks, std::function<void()> forget);
    /// Goes on from `state`: if the device was activated, the first take_work() activates it with the queues where they
    /// were. Throws Error: `state` is none of a device with this identity and this memory.
    Negotiation(const Identity& identity, const GuestMemory& memory, Hooks hooks, std::function<void()> forget,
                State state);

    [[nodiscard]] const Identity& identity() const noexcept { return identity_; }
    [[nodiscard]] const GuestMemory& memory() const noexcept { return memory_; }

    // --- The guest's side ---------------------------------------------------------------------------------------

    /// 32 of the features that are offered: bits 0 to 31 for 0, 32 to 63 for 1, none beyond.
    [[nodiscard]] std::uint32_t offered_features(std::uint32_t half) const noexcept;
    /// The features that the driver has accepted so far, by halves.
    [[nodiscard]] std::uint32_t accepted_features(std::uint32_t half) const;
    /// The driver accepts `bits` of that half.
    void accept_features(std::uint32_t half, std::uint32_t bits);

    [[nodiscard]] std::uint32_t status() const;
    /// The driver writes the status; 0 is a reset.
    void write_status(std::uint32_t value);
    /// Whether a reset is under way, during which the driver's writes are ignored.
    [[nodiscard]] bool is_resetting() const;

    [[nodiscard]] std::uint32_t config_generation() const;
    /// Fills `data` from `offset` on; all ones beyond the end.
    void read_config(std::uint64_t offset, std::span<std::byte> data) const noexcept;
    void write_config(std::uint64_t offset, std::span<const std::byte> data) noexcept;

    /// What the driver may read of a queue.
    struct QueueView {
        QueueGeometry geometry;
        std::uint16_t largest = 0; ///< the most entries it may have
        bool is_enabled = false;
        bool is_resetting = false;
    };
    /// Nothing if there is no such queue.
    [[nodiscard]] std::optional<QueueView> queue(std::uint32_t index) const;
    enum class QueuePart { kDescriptors, kDriverArea, kDeviceArea };
    // Without effect for queues that do not exist.
    void set_queue_size(std::uint32_t index, std::uint32_t size);
    /// Bits 0 to 31 of the address of a part for half 0, 32 to 63 for 1.
    void set_queue_address(std::uint32_t index, QueuePart part, unsigned half, std::uint32_t bits);
    /// 1 enables the queue, 0 disables it; other values are ignored.
    void enable_queue(std::uint32_t index, std::uint32_t value);
    /// VIRTIO_F_RING_RESET (2.6.1); without effect unless it was negotiated.
    void reset_queue(std::uint32_t index);

    /// The driver rings for queue `value`. Without effect unless the driver is ready.
    void ring(std::uint32_t value);

    /// Whether the device may read and write the guest's memory: at first it may. Returns whether follow_reach() is to
    /// be called, once the caller holds no lock.
    [[nodiscard]] bool set_reach(bool reaches) noexcept;
    /// Has the device's thread follow. If the device may not reach memory any more, it waits as a reset does.
    void follow_reach();

    // --- The device's side --------------------------------------------------------------------------------------

    /// What the driver wants of the device's thread since the last call. Several may be true; they are to be done in
    /// this order.
    struct Work {
        bool reset = false;                      ///< Device::stop(); when it is idle, finish_reset()
        std::optional<Activation> activation;    ///< Device::activate()
        std::vector<std::uint16_t> queue_resets; ///< Device::stop_queue(); when idle, finish_queue_reset()
        /// Device::restart_queue()
        std::vector<std::pair<std::uint16_t, Queue>> restarts;
        /// The device may not reach memory: Device::pause(), and when it is paused, finish_standing(). What is no reset
        /// waits until it may.
        bool stands = false;
    };
    enum class Take { kAll, kReset };
    /// A reset of a device that was never activated is finished here; it does not show. With Take::kReset, what is no
    /// reset waits for a later call; it is for a device that is paused.
    [[nodiscard]] Work take_work(Take take = Take::kAll);
    /// Call it once after each Work::reset.
    void finish_reset();
    /// The device stands still, or is not activated. Without effect if it may reach memory by now.
    void finish_standing();
    /// Call it once after each of Work::queue_resets; without effect if the device was reset since.
    void finish_queue_reset(std::uint16_t index);

    /// Whether the device is activated. Takes no lock.
    [[nodiscard]] bool is_active() const noexcept { return activated_.load(std::memory_order_relaxed); }

    /// See DriverLink::change_config(). Returns whether the driver is to be notified.
    [[nodiscard]] bool change_config(std::size_t offset, std::span<const std::byte> bytes);
    /// What the configuration space holds now, with what the driver wrote.
    [[nodiscard]] std::vector<std::byte> config() const;
    /// See DriverLink::fail(). Returns whether the driver is to be notified.
    [[nodiscard]] bool fail(std::string_view why);
    /// Why the device needs a reset; empty if it does not.
    [[nodiscard]] std::string failure() const;

    /// All of it as a value; `queues` is where the device is in each of its queues (Device::queue_states()).
    [[nodiscard]] State state(std::span<const std::optional<Queue::State>> queues) const;

  private:
    /// How far the device's thread is with something that the driver asked it to stop.
    enum class Stop {
        kNone,
        kRequested,
        kTaken, ///< take_work() has told the device's thread
    };

    /// How a queue of the driver's stands with the device's thread.
    struct QueueProgress {
        bool in_device = false;    ///< the device has the Queue
        bool is_resetting = false; ///< the driver asked for a reset, not only for a stop
        Stop stop = Stop::kNone;   ///< only while it is in the device
    };

    /// What remains to be done for a write once the lock is free.
    enum class After {
        kNothing,
        kWork,        ///< call Hooks::work
        kWorkAndWait, ///< and wait until nothing is being stopped
    };

    void follow_up(After after);

    // All below: with the lock held.
    [[nodiscard]] After take_status(std::uint32_t value);
    [[nodiscard]] After take_enable(std::size_t index, std::uint32_t value);
    [[nodiscard]] After take_queue_reset(std::size_t index);
    /// The geometry of queue `index`, if there is one that the driver may change now.
    [[nodiscard]] QueueGeometry* changeable_geometry(std::uint32_t index) noexcept;
    /// False if the patience came to its end first, and somebody has to be told.
    [[nodiscard]] bool wait_until_stopped();
    [[nodiscard]] bool are_features_acceptable() const noexcept;
    [[nodiscard]] bool has_status(std::uint32_t bits) const noexcept { return (state_.status & bits) == bits; }
    [[nodiscard]] QueueState fresh_queue(std::size_t index) const noexcept;
    [[nodiscard]] Queue::State fresh_queue_state(const QueueGeometry& geometry) const noexcept;
    [[nodiscard]] QueueState stopped_queue(std::size_t index) const noexcept;
    [[nodiscard]] bool is_stopping() const noexcept;
    void reset(State& state) const;
    void become_reset();
    /// Empty if `state_` can be that of such a device.
    [[nodiscard]] std::string_view why_impossible() const;

    const Identity identity_;
    const std::uint64_t offered_features_;
    const GuestMemory& memory_;
    const Hooks hooks_;
    const std::function<void()> forget_;

    /// Written by the device's thread only.
    std::atomic<bool> activated_ = false;

    mutable std::mutex mutex_; ///< guards all below
    std::condition_variable stopped_;
    /// `in_device` of its queues is only for those that the device has not got yet: it says where they go on. For the
    /// others the device knows that.
    State state_;
    Stop reset_ = Stop::kNone;
    bool reaches_ = true;
    bool is_to_stand_ = false;            ///< the device's thread has not said yet that the device stands still
    std::vector<QueueProgress> progress_; ///< by queue
};

} // namespace vmm::devices::virtio
