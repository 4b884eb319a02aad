// The only PCI bus of a machine: it decides which function answers at which address.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>

#include "devices/device.hpp"
#include "devices/pci/function.hpp"
#include "kvm/host/guest_address.hpp"

namespace vmm::devices::pci {

/// Bus 0, with up to 32 devices of one function each; device 0 is the host bridge. A driver reaches their configuration
/// spaces by memory (ECAM, PCI Express Base 3.0, 7.2.2) and by ports (ConfigPorts). It reaches their registers in one
/// window of memory, in which it may move them. Registers outside of the window do not answer. If two functions
/// overlap, the one with the lower number answers.
///
/// Devices may be inserted and removed while the guest runs. A removed device is destroyed after the last access to it
/// ends.
///
/// Threads: any number at once.
class RootBus {
  public:
    static constexpr unsigned kSlots = 32;
    static constexpr std::uint64_t kEcamBytes = 1 * kMiB;

    /// Called when the range changes in which only the function in `slot` answers; `to` is empty if there is none. The
    /// range also changes when a function with a lower number moves into it or away. A function that has lost its range
    /// is reported before the one that has gained it. The bus holds a lock, so the callback must not call the bus.
    using Moved = std::function<void(unsigned slot, std::optional<GuestRange> to)>;

    /// `window` is the memory in which registers can lie. `moved` may be empty.
    RootBus(GuestRange window, Moved moved);

    /// Puts `function` into `slot`, which must be empty.
    void insert(unsigned slot, std::shared_ptr<Function> function);
    /// Returns null if the slot is empty.
    std::shared_ptr<Function> remove(unsigned slot);
    [[nodiscard]] std::shared_ptr<Function> function(unsigned slot) const;

    /// The devices through which a driver reaches the bus by memory. ConfigPorts is the one for ports.
    [[nodiscard]] Device& ecam() noexcept { return ecam_; }
    [[nodiscard]] Device& window() noexcept { return window_device_; }

    /// An access to configuration space, within one double word. `at` must be below kEcamBytes, in the layout of ECAM.
    void read_config(std::uint32_t at, std::span<std::byte> data) const noexcept;
    void write_config(std::uint32_t at, std::span<const std::byte> data) noexcept;

  private:
    /// Both pass accesses on to the bus.
    class Ecam final : public Device {
      public:
        explicit Ecam(RootBus& bus) noexcept : bus_(bus) {}
        [[nodiscard]] std::string_view name() const noexcept override { return "pci-ecam"; }
        void read(std::uint64_t offset, std::span<std::byte> data) noexcept override;
        void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override;

      private:
        RootBus& bus_;
    };
    class Window final : public Device {
      public:
        explicit Window(RootBus& bus) noexcept : bus_(bus) {}
        [[nodiscard]] std::string_view name() const noexcept override { return "pci-window"; }
        void read(std::uint64_t offset, std::span<std::byte> data) noexcept override;
        void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override;

      private:
        RootBus& bus_;
    };

    struct Slot {
        std::shared_ptr<Function> function;
        std::optional<GuestRange> registers; ///< within the window
        std::optional<GuestRange> alone;     ///< the same; nothing if a function with a lower number overlaps it
    };
    /// The function that answers at an address, and the number of the `length` bytes that belong to it.
    struct Target {
        std::shared_ptr<Function> function; ///< null: nobody answers
        std::uint64_t offset = 0;
        std::size_t length = 0;
    };

    [[nodiscard]] Target target(GuestAddress address, std::size_t length) const noexcept;
    /// The members below must be called with the lock held.
    void follow(unsigned index);
    void follow_all();

    const GuestRange window_;
    const Moved moved_;
    mutable std::mutex mutex_;
    std::array<Slot, kSlots> slots_; ///< guarded by the lock
    Ecam ecam_{*this};
    Window window_device_{*this};
};

} // namespace vmm::devices::pci
