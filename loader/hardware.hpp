// The hardware of the guest, as described by both the ACPI tables and the device tree.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "kvm/host/guest_address.hpp"
#include "loader/acpi_numa.hpp"

namespace vmm::loader {

/// vCPU n has local APIC id n. Ids from 255 on would need x2APIC mode, which is not described.
inline constexpr unsigned kMaxVcpus = 254;
inline constexpr std::size_t kMaxVirtioMmio = 256;

/// How a device raises its interrupt line. Lines are always active high.
enum class InterruptTrigger { kEdge, kLevel };

/// A UART with 8 registers, edge-triggered.
struct SerialPortHardware {
    std::uint16_t port = 0;
    std::uint32_t gsi = 0;
};

/// A virtio device behind MMIO registers.
struct VirtioMmioHardware {
    GuestRange registers; ///< below 4 GiB
    std::uint32_t gsi = 0;
    InterruptTrigger trigger = InterruptTrigger::kEdge;
};

/// A PCI bus: bus 0 of segment 0, with single-function devices in slots 0 to 31.
struct PciHardware {
    GuestRange ecam;                ///< the configuration spaces in memory, 1 MiB below 4 GiB
    GuestRange window;              ///< where the registers of functions may lie, below 4 GiB
    std::uint16_t config_ports = 0; ///< the first of eight ports that also reach configuration spaces
    /// The lines of INTA: slot n has the one at index n modulo 4. They are level-triggered.
    std::array<std::uint32_t, 4> pin_gsis{};
    /// How devices come and go while the guest runs; nothing: they do not. There are three registers of 32 bits, in
    /// which bit n stands for slot n. The first has the slots to which a device has come, and the second those whose
    /// device must go; a read clears either. The guest writes to the third to say that the device may be taken away.
    /// Each edge on `gsi` says that one of the first two has changed. Only ACPI tables describe this.
    struct Hotplug {
        std::uint16_t ports = 0; ///< the first of twelve
        std::uint32_t gsi = 0;
    };
    std::optional<Hotplug> hotplug;
};

/// The identifier that tells a guest that it was restored from a snapshot (Microsoft, "Virtual Machine Generation ID"):
/// 16 bytes of its memory.
struct GenerationIdHardware {
    GuestAddress address{}; ///< a multiple of 8, in memory that the guest is told not to use
    std::uint32_t gsi = 0;  ///< each edge says that the identifier may have changed
};

/// All addresses come from the caller. Ports are I/O ports, one byte wide.
struct Hardware {
    unsigned vcpus = 1;                   ///< 1 to kMaxVcpus
    GuestAddress local_apic{};            ///< below 4 GiB
    GuestAddress io_apic{};               ///< below 4 GiB; its inputs are GSI 0 and up
    std::uint16_t sleep_control_port = 0; ///< a guest writes SLP_TYP << 2 | 0x20 to it to enter a sleep state
    std::uint16_t sleep_status_port = 0;
    std::uint8_t power_off_sleep_type = 0; ///< SLP_TYP of S5 (power off), 0 to 7
    std::uint16_t reset_port = 0;          ///< above sleep_control_port
    std::uint8_t reset_value = 0;          ///< the value that a guest writes to reset_port to reset the machine
    /// The registers at the ports from sleep_control_port on, mapped a second time as memory. Only a device tree names
    /// them, because there machines are switched off through memory.
    std::optional<GuestRange> power_registers;
    std::optional<SerialPortHardware> com1;
    /// The line of the power button: each edge is one press. Only ACPI tables describe it.
    std::optional<std::uint32_t> power_button_gsi;
    std::optional<GenerationIdHardware> generation_id;
    std::optional<std::uint16_t> cmos_rtc_port;  ///< the index port; the data port follows it
    std::uint8_t cmos_century_index = 0;         ///< the index of the clock's century; 0 if it keeps none
    std::vector<VirtioMmioHardware> virtio_mmio; ///< at most kMaxVirtioMmio
    std::optional<PciHardware> pci;
    std::optional<AcpiNuma> numa; ///< without it, all memory and all vCPUs are equally near
};

} // namespace vmm::loader
