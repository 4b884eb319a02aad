// The state of a whole machine as a value, without the content of its memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "devices/acpi_power.hpp"
#include "devices/i8042.hpp"
#include "devices/pci/config_ports.hpp"
#include "devices/pci/hotplug.hpp"
#include "devices/reset_register.hpp"
#include "devices/rtc.hpp"
#include "devices/serial_port.hpp"
#include "devices/virtio/device.hpp"
#include "devices/virtio/device_state.hpp"
#include "devices/virtio/transport.hpp"
#include "kvm/host/guest_address.hpp"
#include "kvm/x86/saved_vcpu.hpp"
#include "kvm/x86/saved_vm.hpp"

namespace vmm {

// A paused machine makes each of these, or it comes from a file. A file may be hostile. Therefore every part that goes
// on from a state checks it, as its constructor says.

/// One virtio device with its registers.
struct VirtioDeviceState {
    std::string name; ///< as Identity has it: "blk0"
    devices::virtio::DeviceId id{};
    devices::virtio::TransportState transport; ///< includes the device's positions in its queues
    devices::virtio::DeviceState device;
    std::uint32_t pci_slot = 0; ///< 0: it is not on a PCI bus
};

/// The state of PCI that does not belong to a function.
struct PciRootState {
    devices::pci::ConfigPorts::State ports;
    devices::pci::Hotplug::State hotplug;
};

/// The devices that are not virtio.
struct BoardState {
    devices::SerialPort::State serial;
    devices::I8042::State i8042;
    devices::ResetRegister::State system_control{};
    devices::ResetRegister::State reset_control{};
    devices::AcpiPower::State power;
    devices::Rtc::State rtc;
    std::optional<PciRootState> pci{}; ///< nothing: the machine has no PCI
};

/// A machine that does not run. The content of its memory is kept elsewhere.
struct MachineState {
    std::vector<kvm::VcpuState> vcpus; ///< by id, from 0 on
    kvm::VmState vm;
    BoardState board;
    std::vector<std::byte> serial_input;   ///< read by the host, and not yet taken by the serial port
    std::vector<VirtioDeviceState> virtio; ///< in the order of their windows
    /// All RAM, in ascending order. It includes memory that was added while the guest ran.
    std::vector<GuestRange> memory;
    std::uint64_t boot_memory_bytes = 0; ///< how much of it the guest was told of when it booted
    /// The root of the prefault vCPUs' page tables, if the guest may have adopted them.
    std::optional<GuestAddress> adopted_page_tables;
    std::vector<std::byte> device_tree; ///< as the guest was given it; empty: it has none
    /// The generation identifier that the guest sees (ACPI, "VM_GEN_COUNTER"), and where it lies in guest memory.
    std::optional<GuestAddress> generation_id_at;
    std::array<std::byte, 16> generation_id{};
};

} // namespace vmm
