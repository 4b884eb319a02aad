// The ACPI tables SRAT and SLIT, which say which memory and which vCPUs of the guest are near each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvm/host/guest_address.hpp"

namespace vmm::loader {

/// The limit of Linux on x86-64, unless it is configured otherwise (CONFIG_NODES_SHIFT).
inline constexpr unsigned kMaxAcpiNodes = 64;
inline constexpr std::size_t kMaxAcpiNumaMemory = 256;

/// The distance of a node to itself. Other distances are relative to it: 20 is twice as far (ACPI 6.3, 5.2.17).
inline constexpr std::uint8_t kAcpiLocalDistance = 10;

/// Guest memory that lies in one node.
struct AcpiNumaMemory {
    GuestRange range; ///< not empty
    unsigned node = 0;
    bool is_pluggable = false; ///< hot-pluggable memory: it is absent at first, and may come
};

/// The guest's NUMA nodes, "proximity domains" in the specification. They are numbered from 0 without a gap, at most
/// kMaxAcpiNodes; each has memory or vCPUs. Linux ignores all nodes if more than 1 MiB of its memory is in none of
/// them.
struct AcpiNuma {
    std::vector<AcpiNumaMemory> memory; ///< 1 to kMaxAcpiNumaMemory ranges, none overlaps another
    std::vector<unsigned> vcpu_nodes;   ///< the node of each vCPU, in their order
    /// Nodes x nodes, row by row: kAcpiLocalDistance on the diagonal and more elsewhere, 255 if there is no way. If it
    /// is empty, there is no SLIT, and Linux assumes that all other nodes are at distance 20.
    std::vector<std::uint8_t> distances;
};

/// System Resource Affinity Table (ACPI 6.3, 5.2.16). vCPU n has local APIC id n, which fits one byte.
[[nodiscard]] std::vector<std::byte> build_srat(const AcpiNuma& numa);

/// System Locality Information Table (ACPI 6.3, 5.2.17). Only for a `numa` with distances.
[[nodiscard]] std::vector<std::byte> build_slit(const AcpiNuma& numa);

} // namespace vmm::loader
