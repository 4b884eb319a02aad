// What a machine needs from every transport.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <variant>
#include <vector>

#include "devices/pci/config_space.hpp"
#include "devices/pci/msix.hpp"
#include "devices/virtio/driver_link.hpp"
#include "devices/virtio/negotiation.hpp"
#include "devices/virtio/queue.hpp"

namespace vmm::devices::virtio {

/// A device's registers over MMIO, as a value.
struct MmioState {
    Negotiation::State negotiation;
    std::uint32_t device_features_select = 0;
    std::uint32_t driver_features_select = 0;
    std::uint32_t queue_select = 0;
    std::uint32_t interrupt_status = 0;

    friend bool operator==(const MmioState&, const MmioState&) = default;
};

/// A device's registers over PCI, as a value.
struct PciState {
    Negotiation::State negotiation;
    std::uint32_t device_features_select = 0;
    std::uint32_t driver_features_select = 0;
    std::uint16_t queue_select = 0;
    std::uint8_t interrupt_status = 0;
    std::uint16_t config_vector = 0;
    std::vector<std::uint16_t> queue_vectors; ///< by queue
    pci::ConfigSpace::State config_space{};
    pci::Msix::State msix;

    friend bool operator==(const PciState&, const PciState&) = default;
};

using TransportState = std::variant<MmioState, PciState>;

/// The negotiation in a state, independent of the transport.
// NOLINTNEXTLINE(bugprone-exception-escape): std::visit() throws only if there is no value, and one is always there.
[[nodiscard]] inline const Negotiation::State& negotiation_of(const TransportState& state) noexcept {
    return std::visit([](const auto& one) -> const Negotiation::State& { return one.negotiation; }, state);
}

/// The registers of a device, with the state of its negotiation. Each transport is the device's DriverLink.
///
/// Threads: as for each transport.
class Transport : public DriverLink {
  public:
    virtual ~Transport() = default;

    [[nodiscard]] virtual Negotiation& negotiation() noexcept = 0;
    [[nodiscard]] virtual const Negotiation& negotiation() const noexcept = 0;
    /// The number of interrupts so far, for statistics. Threads: any.
    [[nodiscard]] virtual std::uint64_t interrupts() const noexcept = 0;
    /// The whole transport as a value. `queues` are the device's positions in its queues (Device::queue_states()). The
    /// guest must not run meanwhile.
    [[nodiscard]] virtual TransportState save(std::span<const std::optional<Queue::State>> queues) const = 0;
    /// Interrupts again if the driver has not acknowledged all events. Call it after a restore, when the interrupt
    /// controller has its state, because the first interrupt may have been lost between the two.
    virtual void repeat_interrupt() noexcept = 0;
};

} // namespace vmm::devices::virtio
