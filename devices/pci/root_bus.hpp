// The one PCI bus of a machine: which function answers where.
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
/// spaces by memory (ECAM, PCI Express Base 3.0, 7.2.2) and by ports (ConfigPorts), and their registers in one window
/// of memory, where it may move them. What of a function lies outside of the window answers nowhere. Of two that lie in
/// the same place, the one with the lower number answers.
///
/// Devices may be inserted and removed while the guest runs; one that is removed ends when the last access to it ends.
///
/// Threads: any, at once.
class RootBus {
  public:
    static constexpr unsigned kSlots = 32;
    static constexpr std::uint64_t kEcamBytes = 1 * kMiB;

    /// Is called when the place changes at which only the function in `slot` answers; `to` is empty if there is none.
    /// The place changes, too, when a function with a lower number comes to lie there, or goes. A function that has
    /// lost its place is named before the one that has won it. The bus holds a lock, so this must not call the bus.
    using Moved = std::function<void(unsigned slot, std::optional<GuestRange> to)>;

    /// `window` is where registers can be. `moved` may be empty.
    RootBus(GuestRange window, Moved moved);

    /// There is none in `slot` yet.
    void insert(unsigned slot, std::shared_ptr<Function> function);
    /// Null if there is none.
    std::shared_ptr<Function> remove(unsigned slot);
    [[nodiscard]] std::shared_ptr<Function> function(unsigned slot) const;

    /// The places where a driver reaches it by memory; ConfigPorts is that by ports.
    [[nodiscard]] Device& ecam() noexcept { return ecam_; }
    [[nodiscard]] Device& window() noexcept { return window_device_; }

    /// An access to configuration space, within one double word. `at` is below kEcamBytes, and has the order of ECAM.
    void read_config(std::uint32_t at, std::span<std::byte> data) const noexcept;
    void write_config(std::uint32_t at, std::span<const std::byte> data) noexcept;

  private:
    /// Each passes an access on to the bus.
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
        std::optional<GuestRange> alone;     ///< the same, or nothing if one with a lower number lies there, too
    };
    /// The function that answers at an address, and how many bytes of `length` are its own.
    struct Target {
        std::shared_ptr<Function> function; ///< null: nobody answers
        std::uint64_t offset = 0;
        std::size_t length = 0;
    };

    [[nodiscard]] Target target(GuestAddress address, std::size_t length) const noexcept;
    /// With the lock held.
    void follow(unsigned index);
    void follow_all();

    const GuestRange window_;
    const Moved moved_;
    mutable std::mutex mutex_;
    std::array<Slot, kSlots> slots_; ///< with the lock held
    Ecam ecam_{*this};
    Window window_device_{*this};
};

} // namespace vmm::devices::pci
