// The registers of a virtio device over PCI (virtio 1.2, 4.1).
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>

#include "devices/pci/config_space.hpp"
#include "devices/pci/function.hpp"
#include "devices/pci/interrupts.hpp"
#include "devices/pci/msix.hpp"
#include "devices/virtio/device.hpp"
#include "devices/virtio/driver_link.hpp"
#include "devices/virtio/negotiation.hpp"
#include "devices/virtio/transport.hpp"
#include "kvm/host/guest_address.hpp"
#include "kvm/host/guest_memory.hpp"

namespace vmm::devices::virtio {

/// A PCI function that is a modern virtio device: the structures of 4.1.4 behind base address register 0, MSI-X with a
/// vector for configuration changes and one for each queue, and the pin for drivers that do not use MSI-X.
///
///     0x0000  common configuration   4.1.4.3
///     0x1000  ISR status             4.1.4.5
///     0x2000  configuration space    4.1.4.6
///     0x3000  doorbells              4.1.4.4; that of queue n is n * 4 bytes from there
///     0x4000  MSI-X table
///     0x5000  MSI-X pending bits
///
/// Where the specification leaves a choice to the device:
/// - A field of the common configuration can be reached by an access of its own width, and a field of 64 bits also by
///   accesses to its halves. Everything else reads as all ones, and writes to it are ignored.
/// - A doorbell may be written with 2 or 4 bytes. Its address selects the queue, and the value is ignored.
/// - Writes of the driver during a reset are ignored, except to the table of vectors and their masks.
/// - While the function is no bus master (PCI Local Bus 3.0, 6.2.2), the device stands still, and its messages wait.
///   When the write by which a driver clears this bit is done, the device no longer uses the driver's memory.
///
/// Threads: any thread may use the guest's side; only the device's thread uses the device's side; all at the same time.
/// notify() takes no lock if the driver uses MSI-X.
class PciTransport final : public pci::Function, public Transport {
  public:
    /// The size of base address register 0.
    static constexpr std::uint32_t kBytes = 0x8000;
    /// The offset of the doorbells and the distance between them, for code that catches such writes before they come
    /// here.
    static constexpr std::uint64_t kDoorbells = 0x3000;
    static constexpr std::uint64_t kDoorbellStride = 4;

    using Hooks = Negotiation::Hooks;
    using State = PciState;

    /// The connections to the interrupt controllers, which must outlive it.
    struct Interrupts {
        std::span<pci::MessageLine* const> messages; ///< vectors(identity) of them
        pci::PinLine& pin;
    };

    /// The number of vectors of a device.
    [[nodiscard]] static std::size_t vectors(const Identity& identity) noexcept {
        return identity.queue_sizes.size() + 1;
    }

    /// Its registers lie at `base` at first, a multiple of kBytes below 4 GiB. `memory` must outlive it.
    PciTransport(const Identity& identity, const GuestMemory& memory, GuestAddress base, const Interrupts& interrupts,
                 Hooks hooks);
    /// Continues from `state`, which says where its registers lie. Throws Error if it does not belong to such a device.
    PciTransport(const Identity& identity, const GuestMemory& memory, GuestAddress base, const Interrupts& interrupts,
                 Hooks hooks, const State& state);

    // ---- The guest's side

    [[nodiscard]] std::string_view name() const noexcept override;
    void read_config(std::uint16_t offset, std::span<std::byte> data) noexcept override;
    void write_config(std::uint16_t offset, std::span<const std::byte> data) noexcept override;
    [[nodiscard]] std::optional<GuestRange> decoded() const noexcept override;
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
    /// The common part of the constructors; `state` may be null.
    PciTransport(const Identity& identity, const GuestMemory& memory, GuestAddress base, const Interrupts& interrupts,
                 Hooks hooks, const State* state);

    /// The offsets in configuration space that are needed later.
    struct Capabilities {
        std::uint8_t msix = 0;
        std::uint8_t window = 0; ///< VIRTIO_PCI_CAP_PCI_CFG
    };
    /// An access by the driver through the capability VIRTIO_PCI_CAP_PCI_CFG (4.1.4.9).
    struct Access {
        std::uint64_t offset = 0;
        std::size_t length = 0;
    };

    /// Sets up the configuration space, which continues from `state` if there is one.
    [[nodiscard]] Capabilities describe(const Identity& identity, GuestAddress base, const State* state);
    [[nodiscard]] pci::Msix make_msix(const Identity& identity, const Interrupts& interrupts, const State* state) const;
    [[nodiscard]] Negotiation make_negotiation(const Identity& identity, const GuestMemory& memory, Hooks hooks,
                                               const State* state);
    /// Must be called with config_mutex_ held, or during construction.
    [[nodiscard]] bool is_master() const noexcept;
    [[nodiscard]] std::optional<Access> window_access() const noexcept;
    [[nodiscard]] bool is_window_access(std::uint16_t offset, std::size_t bytes) const noexcept;

    [[nodiscard]] std::uint64_t read_common(std::uint64_t offset, std::size_t bytes) const noexcept;
    [[nodiscard]] std::uint64_t read_common_of_queue(std::uint64_t offset, std::size_t bytes) const noexcept;
    [[nodiscard]] std::uint8_t take_generation() const;
    void write_common(std::uint64_t offset, std::size_t bytes, std::uint64_t value);
    template <typename Value>
    void select(std::atomic<Value>& what, Value value);
    [[nodiscard]] std::uint16_t as_vector(std::uint64_t value) const noexcept;
    /// Interrupts for a change of the configuration.
    void interrupt_for_config() noexcept;
    /// Sets the pin to its present state.
    void follow_pin() noexcept;
    [[nodiscard]] std::uint8_t take_interrupt_status() noexcept;
    void forget() noexcept;

    mutable std::mutex config_mutex_; ///< guards the two below
    pci::ConfigSpace config_space_;
    Capabilities capabilities_;
    pci::Msix msix_;
    std::mutex pin_mutex_; ///< guards the two below
    pci::PinLine& pin_;
    bool pin_is_up_ = false;
    std::atomic<bool> pin_is_off_ = false; ///< switched off by the command register
    std::atomic<std::uint8_t> interrupt_status_ = 0;
    std::atomic<std::uint64_t> interrupts_ = 0;
    std::atomic<std::uint32_t> device_features_select_ = 0;
    std::atomic<std::uint32_t> driver_features_select_ = 0;
    std::atomic<std::uint16_t> queue_select_ = 0;
    std::atomic<std::uint16_t> config_vector_;
    std::array<std::atomic<std::uint16_t>, QueueSet::kMostQueues> queue_vectors_;
    mutable std::mutex generation_mutex_;       ///< guards the two below
    mutable std::uint32_t seen_generation_ = 0; ///< of the negotiation, when the driver read it last
    mutable std::uint8_t shown_generation_ = 0;
    Negotiation negotiation_; // last, because a reset sets all of the above
};

} // namespace vmm::devices::virtio
