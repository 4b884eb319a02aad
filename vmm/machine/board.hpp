// The devices of the machine, on their buses.
#pragma once

#include <functional>
#include <optional>

#include "devices/acpi_power.hpp"
#include "devices/bus.hpp"
#include "devices/i8042.hpp"
#include "devices/pci/config_ports.hpp"
#include "devices/pci/hotplug.hpp"
#include "devices/reset_register.hpp"
#include "devices/rtc.hpp"
#include "devices/serial_port.hpp"
#include "kvm/vm.hpp"
#include "loader/hardware.hpp"
#include "vmm/machine/custom_devices.hpp"
#include "vmm/machine/irqfd_line.hpp"
#include "vmm/machine/pci_root.hpp"
#include "vmm/machine/virtio_devices.hpp"
#include "vmm/state/machine_state.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {

/// Everything that the guest finds at its ports and addresses, beyond what KVM emulates. Construction attaches every
/// device and freezes the buses.
///
/// Threads: the buses may be used from any thread.
class Board {
  public:
    /// `stop`, `virtio` and `custom` must outlive the board. `stop` gets a request if the guest switches itself off or
    /// resets itself. The devices go on from `state`; `pci` is null if the machine has no PCI. Must be called after
    /// kvm::Vm::create_irqchip(). Throws Error, also if no device can have such a state.
    Board(kvm::Vm& vm, devices::CharacterPort::Callbacks serial_callbacks, VirtioDevices& virtio, CustomDevices& custom,
          PciRoot* pci, StopRequest& stop, const BoardState& state = {});

    [[nodiscard]] devices::Bus& ports() noexcept { return ports_; }
    [[nodiscard]] devices::Bus& mmio() noexcept { return mmio_; }
    [[nodiscard]] devices::SerialPort& serial() noexcept { return serial_; }

    /// Returns the state of the whole board. No vCPU may run.
    [[nodiscard]] BoardState state() const;
    /// Raises each interrupt again whose reason is still pending. It is for a board that goes on from a state, and is
    /// called when the interrupt controllers have their state.
    void repeat_interrupts() noexcept;

    /// Presses the power button once. A guest that was told of it by ACPI may switch itself off then.
    void press_power_button() noexcept { power_button_line_.raise(); }

    /// The first tells the guest that a device has been added in `slot` of its PCI bus. The second asks the guest to
    /// give back the device in `slot`. Both need PCI.
    void announce_device(unsigned slot) noexcept { pci_hotplug_->announce(slot); }
    void ask_for_device(unsigned slot) noexcept { pci_hotplug_->ask_back(slot); }

    /// Interrupts the guest, so that it looks at its generation identifier.
    void tell_of_generation_id() noexcept { generation_id_line_.raise(); }

    /// Returns what the guest is told of this board. The guest has `vcpus` vCPUs, the nodes `numa` if it has any, and
    /// these virtio devices over MMIO.
    [[nodiscard]] static loader::Hardware describe(unsigned vcpus, std::optional<loader::AcpiNuma> numa,
                                                   std::vector<loader::VirtioMmioHardware> virtio, bool has_pci);

  private:
    IrqfdLine com1_line_;
    IrqfdLine power_button_line_;
    IrqfdLine generation_id_line_;
    devices::SerialPort serial_;
    devices::I8042 i8042_;
    devices::ResetRegister system_control_;
    devices::ResetRegister reset_control_;
    devices::AcpiPower power_;
    devices::Rtc rtc_;
    std::optional<devices::pci::ConfigPorts> pci_ports_;
    std::optional<IrqfdLine> pci_hotplug_line_;
    std::optional<devices::pci::Hotplug> pci_hotplug_;
    devices::Bus ports_{devices::AddressSpace::kPortIo};
    devices::Bus mmio_{devices::AddressSpace::kMmio};
};

} // namespace vmm
