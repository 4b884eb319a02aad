// The PCI of a machine: its bus, and the connections of the functions on it to KVM.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "devices/bus.hpp"
#include "devices/pci/interrupts.hpp"
#include "devices/pci/root_bus.hpp"
#include "kvm/host/event_fd.hpp"
#include "kvm/host/guest_address.hpp"
#include "kvm/vm.hpp"
#include "kvm/x86/interrupt_routes.hpp"
#include "loader/hardware.hpp"
#include "vmm/machine/level_line.hpp"

namespace vmm {

/// The bus with its host bridge, the routes of messages, the lines that pins share, and the doorbells. KVM catches the
/// doorbells wherever a function's registers lie.
///
/// Threads: the one that made it, but the bus, and what the functions on it call, may be used from any.
class PciRoot {
  public:
    /// It must be called after kvm::Vm::create_irqchip(). `vm` must outlive it. Throws Error.
    explicit PciRoot(kvm::Vm& vm);

    [[nodiscard]] devices::pci::RootBus& bus() noexcept { return bus_; }

    /// Makes a line for the messages of one vector. This object must outlive it. Throws Error.
    [[nodiscard]] std::unique_ptr<devices::pci::MessageLine> make_message_line();
    /// Makes the pin of the function in `slot`. INTA of devices 0, 4, 8 and so on share a line, and so do those of 1,
    /// 5, 9 and so on. This object must outlive it.
    [[nodiscard]] std::unique_ptr<devices::pci::PinLine> make_pin(unsigned slot);

    /// From now on a write to `first + i * stride` in the registers of the function in `slot` is an event on
    /// `doorbells[i]`, without an exit to user space. This holds wherever a driver moves the registers. `doorbells`
    /// must stay open until release_doorbells(). It must be called before the function is inserted.
    void catch_doorbells(unsigned slot, std::vector<int> doorbells, std::uint64_t first, std::uint64_t stride);
    void release_doorbells(unsigned slot) noexcept;

    /// The first address of the registers of a function: `bytes` for each slot, a power of two up to 64 KiB.
    [[nodiscard]] static GuestAddress place(unsigned slot, std::uint64_t bytes) noexcept;

    /// Puts configuration spaces and registers on the bus. This object must outlive the use of the bus. Throws Error.
    void attach_to(devices::Bus& mmio);
    /// Returns where the guest finds PCI.
    [[nodiscard]] static loader::PciHardware describe();

  private:
    class Message;
    class Pin;

    /// An input of the I/O APIC that is up as long as one of its pins is.
    struct SharedLine {
        SharedLine(const kvm::Vm& vm, std::uint32_t gsi) : line(vm, gsi) {}
        std::mutex mutex; ///< guards `up`
        unsigned up = 0;  ///< the number of pins that are up
        LevelLine line;
    };

    struct Doorbells {
        std::vector<int> events;
        std::uint64_t first = 0;
        std::uint64_t stride = 0;
        std::optional<GuestAddress> attached_at; ///< where the registers were when they were attached
    };

    void move_doorbells(unsigned slot, std::optional<GuestRange> to);
    void detach(Doorbells& doorbells) noexcept;

    kvm::Vm& vm_;
    kvm::InterruptRoutes routes_;
    std::deque<SharedLine> lines_;
    std::mutex doorbells_mutex_; ///< guards doorbells_
    std::array<Doorbells, devices::pci::RootBus::kSlots> doorbells_;
    devices::pci::RootBus bus_; // last: it calls what is above
};

} // namespace vmm
