#include "vmm/machine/board.hpp"

#include <utility>

#include "vmm/machine/memory_map.hpp"

namespace vmm {

using devices::AcpiPower;

Board::Board(kvm::Vm& vm, devices::CharacterPort::Callbacks serial_callbacks, VirtioDevices& virtio,
             CustomDevices& custom, PciRoot* pci, StopRequest& stop, const BoardState& state)
    : com1_line_(vm, memory_map::kCom1Gsi), power_button_line_(vm, memory_map::kPowerButtonGsi),
      generation_id_line_(vm, memory_map::kGenerationIdGsi),
      serial_(com1_line_, std::move(serial_callbacks), state.serial),
      i8042_([&stop] { stop.request(ExitReason::kReboot); }, state.i8042),
      system_control_(
          devices::system_control::kLayout, [&stop] { stop.request(ExitReason::kReboot); }, state.system_control),
      reset_control_(
          devices::reset_control::kLayout, [&stop] { stop.request(ExitReason::kReboot); }, state.reset_control),
      power_({[&stop] { stop.request(ExitReason::kPowerOff); }, [&stop] { stop.request(ExitReason::kReboot); }},
             state.power),
      rtc_(state.rtc) {
    ports_.attach(memory_map::kCom1Port, devices::SerialPort::kSize, serial_);
    ports_.attach(memory_map::kI8042Port, devices::I8042::kSize, i8042_);
    ports_.attach(memory_map::kSystemControlPort, devices::system_control::kLayout.size, system_control_);
    if (pci != nullptr) {
        const PciRootState& of_pci = state.pci ? *state.pci : PciRootState{};
        pci_ports_.emplace(pci->bus(), reset_control_, of_pci.ports);
        ports_.attach(memory_map::kPciConfigPorts, devices::pci::ConfigPorts::kSize, *pci_ports_);
        pci_hotplug_line_.emplace(vm, memory_map::kPciHotplugGsi);
        pci_hotplug_.emplace(
            *pci_hotplug_line_, [&virtio](unsigned slot) { virtio.let_go(slot); }, of_pci.hotplug);
        ports_.attach(memory_map::kPciHotplugPorts, devices::pci::Hotplug::kSize, *pci_hotplug_);
        pci->attach_to(mmio_);
    } else if (!custom.claims_ports(
                   {GuestAddress{memory_map::kResetControlPorts}, devices::reset_control::kLayout.size})) {
        // An embedding program that brings its own PCI has this port, too.
        ports_.attach(memory_map::kResetControlPorts, devices::reset_control::kLayout.size, reset_control_);
    }
    ports_.attach(memory_map::kAcpiPowerPort, AcpiPower::kSize, power_);
    ports_.attach(memory_map::kRtcPort, devices::Rtc::kSize, rtc_);
    mmio_.attach(to_integer(memory_map::kPowerRegisters), AcpiPower::kSize, power_);
    virtio.attach_to(mmio_);
    // Custom devices come last, so that an error names the custom device if two overlap.
    custom.attach_to(ports_, mmio_);
    ports_.freeze();
    mmio_.freeze();
}

BoardState Board::state() const {
    return {.serial = serial_.state(),
            .i8042 = devices::I8042::state(),
            .system_control = system_control_.state(),
            .reset_control = reset_control_.state(),
            .power = power_.state(),
            .rtc = rtc_.state(),
            .pci = pci_ports_ ? std::optional(PciRootState{pci_ports_->state(), pci_hotplug_->state()}) : std::nullopt};
}

void Board::repeat_interrupts() noexcept {
    serial_.repeat_interrupt();
    if (pci_hotplug_) {
        pci_hotplug_->repeat_interrupt();
    }
}

loader::Hardware Board::describe(unsigned vcpus, std::optional<loader::AcpiNuma> numa,
                                 std::vector<loader::VirtioMmioHardware> virtio, bool has_pci) {
    loader::Hardware hardware;
    hardware.vcpus = vcpus;
    hardware.numa = std::move(numa);
    hardware.virtio_mmio = std::move(virtio);
    if (has_pci) {
        hardware.pci = PciRoot::describe();
    }
    hardware.local_apic = memory_map::kLocalApic;
    hardware.io_apic = memory_map::kIoApic;
    hardware.sleep_control_port = memory_map::kAcpiPowerPort + AcpiPower::kSleepControlOffset;
    hardware.sleep_status_port = memory_map::kAcpiPowerPort + AcpiPower::kSleepStatusOffset;
    hardware.power_off_sleep_type = AcpiPower::kS5SleepType;
    hardware.reset_port = memory_map::kAcpiPowerPort + AcpiPower::kResetOffset;
    hardware.reset_value = AcpiPower::kResetValue;
    hardware.power_registers = GuestRange{memory_map::kPowerRegisters, AcpiPower::kSize};
    static_assert(AcpiPower::kSleepControlOffset == 0);
    hardware.power_button_gsi = memory_map::kPowerButtonGsi;
    hardware.generation_id = loader::GenerationIdHardware{memory_map::kGenerationId.base, memory_map::kGenerationIdGsi};
    hardware.com1 = loader::SerialPortHardware{memory_map::kCom1Port, memory_map::kCom1Gsi};
    hardware.cmos_rtc_port = memory_map::kRtcPort;
    hardware.cmos_century_index = devices::Rtc::kCenturyIndex;
    return hardware;
}

} // namespace vmm
