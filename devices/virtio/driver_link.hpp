// The connection from a virtio device to its driver, independent of the transport.
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
    /// Every queue of every device has an index below this.
    static constexpr std::uint16_t kMostQueues = 64;

    /// The set with only queue `index`.
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
    /// Calls `with(index)` for each index in the set, in ascending order.
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

/// The connection from a device to its driver. Each transport (MMIO, PCI) is one. A device knows only this of its
/// transport, so it works with each of them.
///
/// Threads: the device's thread.
class DriverLink {
  public:
    DriverLink() = default;
    DriverLink(const DriverLink&) = delete;
    DriverLink(DriverLink&&) = delete;
    DriverLink& operator=(const DriverLink&) = delete;
    DriverLink& operator=(DriverLink&&) = delete;

    /// Sends used buffer notifications (virtio 1.2, 2.3) for `queues`; Queue::wants_interrupt() must have returned true
    /// for each of them. A transport with one interrupt for all queues interrupts once. Takes no lock. Does nothing if
    /// the set is empty, or if the device is not activated.
    virtual void notify(QueueSet queues) noexcept = 0;

    /// Replaces the bytes of the configuration space from `offset` on; the range must lie in it. The generation of the
    /// configuration changes, and the driver is notified if it is ready.
    virtual void change_config(std::size_t offset, std::span<const std::byte> bytes) = 0;

    /// As above, for a change that the driver itself has caused and knows of: it is not notified.
    virtual void note_config(std::size_t offset, std::span<const std::byte> bytes) = 0;

    /// Reports that the driver broke a rule: sets DEVICE_NEEDS_RESET, and notifies the driver if it is ready. The
    /// device must take nothing more from the queue in which the rule was broken, and give back what it had taken.
    /// `why` is for people.
    virtual void fail(std::string_view why) = 0;

    /// The guest's memory, for addresses that a request names besides its buffers.
    [[nodiscard]] virtual const GuestMemory& memory() const noexcept = 0;

  protected:
    ~DriverLink() = default;
};

} // namespace vmm::devices::virtio
