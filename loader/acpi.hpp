// The ACPI tables of the guest.
#pragma once

#include <cstddef>
#include <vector>

#include "kvm/host/guest_address.hpp"
#include "loader/hardware.hpp"

namespace vmm::loader {

/// The bytes of the tables, which belong at `base` (a multiple of 16, below 4 GiB). The RSDP comes first, then DSDT,
/// FADT, MADT, with PCI MCFG, with NUMA nodes SRAT and SLIT, and XSDT (ACPI 6.3, hardware-reduced). Debian's kernels
/// find a virtio device only by its node there.
/// The tables take less than 16 KiB for 254 vCPUs without virtio devices and nodes, and some 80 bytes for each virtio
/// device. SRAT takes 16 bytes for each vCPU and 40 for each range; SLIT takes one for each distance.
[[nodiscard]] std::vector<std::byte> build_acpi_tables(const Hardware& hardware, GuestAddress base);

} // namespace vmm::loader
