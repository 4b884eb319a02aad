// The registers of a virtio device over MMIO (virtio 1.2, 4.2.2).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "devices/device.hpp"
#include "devices/virtio/device.hpp"
#include "devices/virtio/driver_link.hpp"
#include "devices/virtio/negotiation.hpp"
#include "devices/virtio/transport.hpp"
#include "kvm/host/guest_memory.hpp"

namespace vmm::devices::virtio {

/// Maps the registers to a Negotiation. It also holds the selector registers and the interrupt, and is the device's
/// DriverLink.
///
/// Where the specification leaves a choice to the device:
/// - Control registers can be reached only by aligned accesses of 4 bytes. Everything else below 0x100, registers that
///   are for writing only, and bytes beyond the configuration space read as all ones; writes to them are ignored.
/// - The configuration space works for every width and offset.
/// - Writes of the driver during a reset are ignored, except for InterruptACK.
/// - All queues share one interrupt.
///
/// Threads: any thread may use the guest's side (read, write); only the device's thread uses the device's side; both at
/// the same time. notify() takes no lock.
class MmioTransport final : public devices::Device, public Transport {
  public:
    /// The size of the register window, in bytes.
    static constexpr std::uint64_t kSize = 0x1000;
    /// The offset at which doorbells are written, for code that catches such writes before they come here (ioeventfd).
    static constexpr std::uint64_t kQueueNotifyOffset = 0x50;

    using Hooks = Negotiation::Hooks;

    using State = MmioState;

    /// `memory` and `interrupt` must outlive it.
    MmioTransport(const Identity& identity, const GuestMemory& memory, IrqLine& interrupt, Hooks hooks);
    /// Continues from `state`. Throws Error as Negotiation does.
    MmioTransport(const Identity& identity, const GuestMemory& memory, IrqLine& interrupt, Hooks hooks,
                  const State& state);

    // ---- The guest's side

    [[nodiscard]] std::string_view name() const noexcept override;
    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override;

    // ---- The device's side

    [[nodiscard]] Negotiation& negotiation() noexcept override { return negotiation_; }
    [[nodiscard]] const Negotiation& negotiation() const noexcept override { return negotiation_; }

    void notify(QueueSet queues) noexcept override;
    void change_config(std::size_t offset, std::span<const std::byte> bytes) override;
    void note_config(std::size_t offset, std::span<const std::byte> bytes) override;
    void fail(std::string_view why) override;
    [[nodiscard]] const GuestMemory& memory() const noexcept override { return negotiation_.memory(); }

    [[nodiscard]] std::uint64_t interrupts() const noexcept override {
        return interrupts_.load(std::memory_order_relaxed);
    }
    [[nodiscard]] TransportState save(std::span<const std::optional<Queue::State>> queues) const override {
        return state(queues);
    }
    void repeat_interrupt() noexcept override;

    /// The value that save() returns.
    [[nodiscard]] State state(std::span<const std::optional<Queue::State>> queues) const;

  private:
    [[nodiscard]] std::uint32_t read_register(std::uint64_t offset) const noexcept;
    void write_register(std::uint64_t offset, std::uint32_t value);
    void select(std::atomic<std::uint32_t>& what, std::uint32_t value);
    /// Shows `event` in InterruptStatus, then raises the line.
    void interrupt(std::uint32_t event) noexcept;
    void forget() noexcept;

    IrqLine& line_;
    std::atomic<std::uint32_t> interrupt_status_ = 0;
    std::atomic<std::uint64_t> interrupts_ = 0;
    std::atomic<std::uint32_t> device_features_select_ = 0;
    std::atomic<std::uint32_t> driver_features_select_ = 0;
    std::atomic<std::uint32_t> queue_select_ = 0;
    Negotiation negotiation_; // last, because a reset sets all of the above
};

} // namespace vmm::devices::virtio
