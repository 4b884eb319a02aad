// The ACPI tables of the guest.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "kvm/guest_address.hpp"
#include "loader/acpi_numa.hpp"

namespace vmm::loader {

/// vCPU n has local APIC id n. Ids from 255 on need x2APIC entries, which these tables do not have.
inline constexpr unsigned kMaxAcpiVcpus = 254;

/// How a device raises its line; always active high.
enum class InterruptTrigger { edge, level };

/// A UART with 8 registers, edge-triggered.
struct AcpiSerialPort {
    std::uint16_t port = 0;
    std::uint32_t gsi = 0;
};

/// A virtio device behind MMIO registers. Debian's kernels find such a device by its ACPI node only.
struct AcpiVirtioMmio {
    GuestRange registers; ///< below 4 GiB
    std::uint32_t gsi = 0;
    InterruptTrigger trigger = InterruptTrigger::edge;
};

/// The machine the tables describe. All its addresses come from the caller; ports are I/O ports, one byte wide.
struct AcpiConfig {
    unsigned vcpus = 1;                   ///< 1 to kMaxAcpiVcpus
    GuestAddress base{};                  ///< where the tables will lie: a multiple of 16, below 4 GiB
    GuestAddress local_apic{};            ///< below 4 GiB
    GuestAddress io_apic{};               ///< below 4 GiB; its inputs are GSI 0 and up
    std::uint16_t sleep_control_port = 0; ///< a guest writes SLP_TYP << 2 | 0x20 to it to enter a sleep state
    std::uint16_t sleep_status_port = 0;
    std::uint8_t power_off_sleep_type = 0; ///< SLP_TYP of S5 (power off), 0 to 7
    std::uint16_t reset_port = 0;
    std::uint8_t reset_value = 0; ///< what a guest writes to reset_port to reset the machine
    std::optional<AcpiSerialPort> com1;
    std::optional<std::uint16_t> cmos_rtc_port; ///< the index port; the data port follows it
    std::uint8_t cmos_century_index = 0;        ///< where the clock keeps the century; 0 if it does not
    std::vector<AcpiVirtioMmio> virtio_mmio;    ///< at most kMaxAcpiVirtioMmio
    std::optional<AcpiNuma> numa;               ///< without it all memory and all vCPUs are equally near
};

inline constexpr std::size_t kMaxAcpiVirtioMmio = 256;

/// The bytes that belong at `config.base`: the RSDP first, then DSDT, FADT, MADT, with NUMA nodes SRAT and SLIT, and
/// XSDT (ACPI 6.3, hardware-reduced). They take less than 16 KiB for 254 vCPUs without virtio devices and nodes, and
/// some 80 bytes for each virtio device. SRAT takes 16 bytes for each vCPU and 40 for each range; SLIT one for each
/// distance.
[[nodiscard]] std::vector<std::byte> build_acpi_tables(const AcpiConfig& config);

} // namespace vmm::loader
