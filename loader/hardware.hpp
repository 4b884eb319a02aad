// The hardware of the guest, as ACPI tables and device tree both tell of it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "kvm/host/guest_address.hpp"
#include "loader/acpi_numa.hpp"

namespace vmm::loader {

/// vCPU n has local APIC id n. Ids from 255 on need x2APIC mode, which is not described.
inline constexpr unsigned kMaxVcpus = 254;
inline constexpr std::size_t kMaxVirtioMmio = 256;

/// How a device raises its line; always active high.
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

/// A PCI bus: bus 0 of segment 0, with devices of one function in slots 0 to 31.
struct PciHardware {
    GuestRange ecam;                ///< the configuration spaces by memory, 1 MiB below 4 GiB
    GuestRange window;              ///< where the registers of functions may lie, below 4 GiB
    std::uint16_t config_ports = 0; ///< the first of eight by which configuration spaces are reached, too
    /// The line of INTA of slot n is at place n modulo 4. They are level-triggered.
    std::array<std::uint32_t, 4> pin_gsis{};
    /// How devices come and go while the guest runs; nothing: they do not. Three registers of 32 bits, in which bit n
    /// is slot n: those to which a device has come, and those whose device is to go, both of which reading clears; and
    /// one that is written to say that the device may be taken away. Each edge on `gsi` says that one of the first two
    /// has changed. Only ACPI tables tell of it.
    struct Hotplug {
        std::uint16_t ports = 0; ///< the first of twelve
        std::uint32_t gsi = 0;
    };
    std::optional<Hotplug> hotplug;
};

/// The identifier by which a guest finds out that it goes on from a snapshot (Microsoft, "Virtual Machine Generation
/// ID"): 16 bytes of its memory.
struct GenerationIdHardware {
    GuestAddress address{}; ///< a multiple of 8, in memory that the guest is not told to use
    std::uint32_t gsi = 0;  ///< each edge says that the identifier may have changed
};

/// All addresses come from the caller; ports are I/O ports, one byte wide.
struct Hardware {
    unsigned vcpus = 1;                   ///< 1 to kMaxVcpus
    GuestAddress local_apic{};            ///< below 4 GiB
    GuestAddress io_apic{};               ///< below 4 GiB; its inputs are GSI 0 and up
    std::uint16_t sleep_control_port = 0; ///< a guest writes SLP_TYP << 2 | 0x20 to it to enter a sleep state
    std::uint16_t sleep_status_port = 0;
    std::uint8_t power_off_sleep_type = 0; ///< SLP_TYP of S5 (power off), 0 to 7
    std::uint16_t reset_port = 0;          ///< above sleep_control_port
    std::uint8_t reset_value = 0;          ///< what a guest writes to reset_port to reset the machine
    /// The registers of the ports from sleep_control_port on once more, as memory. Only a device tree names them: there
    /// it is by memory that machines are switched off.
    std::optional<GuestRange> power_registers;
    std::optional<SerialPortHardware> com1;
    /// The line of the power button: each edge is one press. Only ACPI tables tell of it.
    std::optional<std::uint32_t> power_button_gsi;
    std::optional<GenerationIdHardware> generation_id;
    std::optional<std::uint16_t> cmos_rtc_port;  ///< the index port; the data port follows it
    std::uint8_t cmos_century_index = 0;         ///< where the clock keeps the century; 0 if it does not
    std::vector<VirtioMmioHardware> virtio_mmio; ///< at most kMaxVirtioMmio
    std::optional<PciHardware> pci;
    std::optional<AcpiNuma> numa; ///< without it all memory and all vCPUs are equally near
};

} // namespace vmm::loader
