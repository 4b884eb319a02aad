// The registers of a virtio device over MMIO (virtio 1.2, 4.2.2).
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

#include "devices/device.hpp"
#include "devices/virtio/device.hpp"
#include "kvm/host/guest_memory.hpp"

namespace vmm::devices::virtio {

/// Status bits (virtio 1.2, 2.1).
inline constexpr std::uint8_t kStatusAcknowledge = 1;
inline constexpr std::uint8_t kStatusDriver = 2;
inline constexpr std::uint8_t kStatusDriverOk = 4;
inline constexpr std::uint8_t kStatusFeaturesOk = 8;
inline constexpr std::uint8_t kStatusNeedsReset = 64;
inline constexpr std::uint8_t kStatusFailed = 128;

/// Holds what the driver negotiates: features, queue geometry, status; and hands it to the device's thread when the
/// driver is ready. It enforces the order of 3.1.1: a driver that sets a status bit before its time, or writes a frozen
/// register, is ignored or has to reset, as the specification says.
///
/// Where the specification leaves a choice to the device:
/// - Control registers are there for aligned accesses of 4 bytes only. Everything else below 0x100, what is for writing
///   only, and what is beyond the configuration space reads as all ones; writes to it are ignored.
/// - The configuration space is exact at every width and offset; the driver's writes to it count from FEATURES_OK on,
///   and are gone with a reset.
/// - Status bits stay set until reset, whatever is written. A bit counts only if those before it are set: ACKNOWLEDGE,
///   DRIVER, FEATURES_OK, DRIVER_OK; several may come at once. After FAILED and DEVICE_NEEDS_RESET none is taken.
/// - FEATURES_OK is refused for features that were not offered, and without VIRTIO_F_VERSION_1.
/// - QueueReady is taken from FEATURES_OK on. Where no queue can be (see Queue::make), or one longer than QueueSizeMax,
///   it stays 0, and the driver may correct its geometry. While it reads 1 the geometry is frozen.
/// - 0 written to QueueReady of a queue that the device has stops it as QueueReset does, but that the geometry remains;
///   QueueReady reads 1 until the device has let go of it.
///
/// A reset takes as long as the device has work with the host: Status reads as before until that is over, then 0.
/// Meanwhile what the driver writes is ignored, but for InterruptACK. Before DRIVER_OK a reset is immediate.
///
/// Threads: the guest's side (read, write) any; the device's side one, the device's thread; both at once. The hot path
/// (notify_driver) takes no lock.
class MmioTransport final : public devices::Device {
  public:
    /// The size of the register window, in bytes.
    static constexpr std::uint64_t kSize = 0x1000;
    /// Where doorbells are written, for those who catch the write before it comes here (ioeventfd).
    static constexpr std::uint64_t kQueueNotifyOffset = 0x50;

    /// Both are called without a lock held, on the thread of whoever wrote.
    struct Hooks {
        /// There is something to take: call take_work() on the device's thread.
        std::function<void()> work;
        /// The driver rang for queue `index`, any value. Where ioeventfds catch that it is never called.
        std::function<void(std::uint16_t index)> doorbell;
        /// How long a write that stops the device or a queue (0 to Status or to QueueReady) waits, after work(), for
        /// the device's thread to finish that. Zero, for those who do both on one thread: not at all.
        ///
        /// Version 2 of this transport has drivers go on as soon as the write is done: Linux' reads no Status back, and
        /// frees the queues. With a time here the device is out of them by then; the vCPU stands still so long.
        std::chrono::milliseconds patience{0};
        /// The patience is at its end and the device is not: what the driver frees next is still written to. Whoever is
        /// told must not let the guest run on. Called without a lock held, on the thread of whoever wrote.
        std::function<void()> overdue = {};
        /// Whether the guest is not to run on anyway, for which nobody waits.
        std::function<bool()> is_ending = {};
    };

    /// `memory` and `interrupt` outlive it.
    MmioTransport(const Identity& identity, const GuestMemory& memory, IrqLine& interrupt, Hooks hooks);

    // --- The guest's side ---------------------------------------------------------------------------------------

    [[nodiscard]] std::string_view name() const noexcept override;
    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override;

    // --- The device's side --------------------------------------------------------------------------------------

    /// What the driver wants of the device's thread since the last call. Several may be true; they are to be done in
    /// this order.
    struct Work {
        bool reset = false;                      ///< Device::stop(); when it is idle, finish_reset()
        std::optional<Activation> activation;    ///< Device::activate()
        std::vector<std::uint16_t> queue_resets; ///< Device::stop_queue(); when idle, finish_queue_reset()
        /// Device::restart_queue()
        std::vector<std::pair<std::uint16_t, Queue>> restarts;
    };
    /// A reset of a device that was never activated is finished here; it does not show.
    [[nodiscard]] Work take_work();
    /// Once after each Work::reset.
    void finish_reset();
    /// Once after each of Work::queue_resets; without effect if the device was reset since.
    void finish_queue_reset(std::uint16_t index);

    /// A used buffer notification (2.3): one interrupt. After Queue::wants_interrupt() said so. Without effect unless
    /// the device is activated.
    void notify_driver() noexcept;

    /// Replaces the bytes of the configuration space from `offset` on, with a new ConfigGeneration, and a configuration
    /// change notification if the driver is ready.
    void change_config(std::size_t offset, std::span<const std::byte> bytes);
    /// What the configuration space holds now, with what the driver wrote.
    [[nodiscard]] std::vector<std::byte> config() const;

    /// The driver broke a rule: DEVICE_NEEDS_RESET, and a configuration change notification if the driver is ready.
    /// Nothing more is to be taken from the queue it was broken in; what was taken is given back. `why` is for people.
    void fail(std::string_view why);
    /// Why the device needs a reset; empty if it does not.
    [[nodiscard]] std::string failure() const;

    /// The guest's memory, for what a request names by address beyond its buffers.
    [[nodiscard]] const GuestMemory& memory() const noexcept { return memory_; }

    /// How many interrupts there were, for statistics.
    [[nodiscard]] std::uint64_t interrupts() const noexcept { return interrupts_.load(std::memory_order_relaxed); }

  private:
    /// How far the device's thread is with something that the driver asked it to stop.
    enum class Stop {
        kNone,
        kRequested,
        kTaken, ///< take_work() has told the device's thread
    };

    /// One queue, as the driver sees it and as the device has it.
    struct QueueRegisters {
        QueueGeometry geometry;  ///< its size is 0 where what was written does not fit in it
        bool ready = false;      ///< QueueReady
        bool resetting = false;  ///< QueueReset
        bool in_device = false;  ///< the device has the Queue
        Stop stop = Stop::kNone; ///< only while it is in the device
    };

    /// What remains to be done for a write once the lock is free.
    enum class After {
        kNothing,
        kWork,        ///< call Hooks::work
        kWorkAndWait, ///< and wait until nothing is being stopped
    };

    [[nodiscard]] std::uint32_t read_register(std::uint64_t offset) const noexcept;
    void read_config(std::uint64_t offset, std::span<std::byte> data) const noexcept;
    void write_config(std::uint64_t offset, std::span<const std::byte> data) noexcept;
    void ring(std::uint32_t value);
    void follow_up(After after);

    // All below: with the lock held.
    [[nodiscard]] After write_register(std::uint64_t offset, std::uint32_t value);
    [[nodiscard]] After write_status(std::uint32_t value);
    [[nodiscard]] After write_queue(QueueRegisters& queue, std::uint64_t offset, std::uint32_t value);
    [[nodiscard]] After write_queue_ready(QueueRegisters& queue, std::uint32_t value);
    [[nodiscard]] After reset_queue(QueueRegisters& queue);
    /// False if the patience came to its end first, and somebody has to be told.
    [[nodiscard]] bool wait_until_stopped();
    [[nodiscard]] bool are_features_acceptable() const noexcept;
    [[nodiscard]] bool has_status(std::uint32_t bits) const noexcept { return (status_ & bits) == bits; }
    [[nodiscard]] QueueRegisters fresh_queue(std::size_t index) const noexcept;
    [[nodiscard]] std::optional<Queue> make_queue(const QueueRegisters& queue) const;
    [[nodiscard]] QueueRegisters* selected_queue() noexcept;
    [[nodiscard]] const QueueRegisters* selected_queue() const noexcept;
    [[nodiscard]] bool is_stopping() const noexcept;
    void become_reset() noexcept;

    /// Shows `event` in InterruptStatus, then raises the line.
    void interrupt(std::uint32_t event) noexcept;

    const Identity identity_;
    const std::uint64_t offered_features_;
    const GuestMemory& memory_;
    IrqLine& line_;
    const Hooks hooks_;

    std::atomic<std::uint32_t> interrupt_status_ = 0;
    std::atomic<std::uint64_t> interrupts_ = 0;
    /// Whether the device is activated. Written by the device's thread only.
    std::atomic<bool> activated_ = false;

    mutable std::mutex mutex_; ///< guards all below
    std::condition_variable stopped_;
    std::uint32_t status_ = 0;
    Stop reset_ = Stop::kNone;
    std::uint32_t device_features_select_ = 0;
    std::uint32_t driver_features_select_ = 0;
    std::uint64_t driver_features_ = 0;
    bool accepts_unknown_ = false; ///< the driver accepted a feature beyond bit 63
    std::uint32_t queue_select_ = 0;
    std::vector<QueueRegisters> queues_;
    std::uint32_t config_generation_ = 0;
    std::vector<std::byte> device_config_; ///< without what the driver wrote: as it is after a reset
    std::vector<std::byte> config_;
    std::string failure_;
};

} // namespace vmm::devices::virtio
