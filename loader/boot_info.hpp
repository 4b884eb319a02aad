// The information that every boot protocol gives to a kernel.
#pragma once

#include <optional>
#include <span>

#include "kvm/host/guest_address.hpp"
#include "loader/memory_map_entry.hpp"

namespace vmm::loader {

struct BootInfo {
    GuestAddress command_line;                  ///< NUL-terminated, below 4 GiB
    std::optional<GuestRange> initrd;           ///< below 4 GiB
    std::optional<GuestAddress> rsdp;           ///< where the ACPI tables start
    std::optional<GuestAddress> setup_data{};   ///< the first of the zero page's list; PVH has no such list
    std::span<const MemoryMapEntry> memory_map; ///< ascending, not overlapping, at most kMaxMemoryMapEntries
};

/// The number of entries that fit the zero page (E820_MAX_ENTRIES_ZEROPAGE). Linux reads no more by PVH either.
inline constexpr std::size_t kMaxMemoryMapEntries = 128;

} // namespace vmm::loader
