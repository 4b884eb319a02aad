// What a virtio device has to its driver, whatever the transport.
#pragma once

#include <bit>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "kvm/host/guest_memory.hpp"

namespace vmm::devices::virtio {

/// Some of a device's queues, by index. Threads: one.
class QueueSet {
  public:
    /// A queue of any device has an index below this.
    static constexpr std::uint16_t kMostQueues = 64;

    /// The set that has queue `index` alone.
    [[nodiscard]] static QueueSet of(std::uint16_t index) noexcept {
        QueueSet set;
        set.add(index);
        return set;
    }

    void add(std::uint16_t index) noexcept {
        assert(index < kMostQueues);
        bits_ |= std::uint64_t{1} << index;
    }
    [[nodiscard]] bool contains(std::uint16_t index) const noexcept {
        return index < kMostQueues && (bits_ >> index & 1) != 0;
    }
    [[nodiscard]] bool empty() const noexcept { return bits_ == 0; }
    /// Calls `with(index)` for each of them, in ascending order.
    template <typename With>
    void each(With with) const {
        for (std::uint64_t left = bits_; left != 0; left &= left - 1) {
            with(static_cast<std::uint16_t>(std::countr_zero(left)));
        }
    }

    friend bool operator==(const QueueSet&, const QueueSet&) = default;

  private:
    std::uint64_t bits_ = 0;
};

/// The way from a device to its driver. Each transport (MMIO, PCI) is one. A device knows no more of its transport than
/// this, so that it works with every one of them.
///
/// Threads: the device's thread.
class DriverLink {
  public:
    DriverLink() = default;
    DriverLink(const DriverLink&) = delete;
    DriverLink(DriverLink&&) = delete;
    DriverLink& operator=(const DriverLink&) = delete;
    DriverLink& operator=(DriverLink&&) = delete;

    /// Sends used buffer notifications (virtio 1.2, 2.3) for `queues`, of each of which Queue::wants_interrupt() has
    /// said so. A transport with one interrupt for all queues interrupts once. Takes no lock. Does nothing if the set
    /// is empty, or if the device is not activated.
    virtual void notify(QueueSet queues) noexcept = 0;

    /// Replaces the bytes of the configuration space from `offset` on. The generation of the configuration changes, and
    /// the driver is notified if it is ready. The range lies in the configuration space.
    virtual void change_config(std::size_t offset, std::span<const std::byte> bytes) = 0;

    /// The same, of what the driver itself has brought about and knows: it is not notified.
    virtual void note_config(std::size_t offset, std::span<const std::byte> bytes) = 0;

    /// Says that the driver broke a rule: sets DEVICE_NEEDS_RESET, and notifies the driver if it is ready. The device
    /// takes nothing more from the queue in which the rule was broken, and gives back what it had taken. `why` is for
    /// people.
    virtual void fail(std::string_view why) = 0;

    /// The guest's memory, for what a request names by address beyond its buffers.
    [[nodiscard]] virtual const GuestMemory& memory() const noexcept = 0;

  protected:
    ~DriverLink() = default;
};

} // namespace vmm::devices::virtio
