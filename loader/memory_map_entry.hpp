// The guest's memory map, as the boot information states it.
#pragma once

#include <cstdint>

#include "kvm/host/guest_address.hpp"

namespace vmm::loader {

/// What the guest may do with a range. The values are the "address range types" of ACPI 6.3, table 15-374; the zero
/// page and the PVH start info share them.
enum class MemoryKind : std::uint32_t {
    kRam = 1,
    kReserved = 2,
    kAcpi = 3, ///< ACPI tables; the guest may reuse the memory after it has read them.
};

struct MemoryMapEntry {
    GuestRange range;
    MemoryKind kind = MemoryKind::kReserved;
};

} // namespace vmm::loader
