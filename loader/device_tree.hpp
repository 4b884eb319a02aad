// The device tree of the guest.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "kvm/host/guest_address.hpp"
#include "loader/hardware.hpp"
#include "loader/memory_map_entry.hpp"

namespace vmm::loader {

/// What a tree says about the boot, besides the hardware.
struct DeviceTreeBoot {
    std::span<const MemoryMapEntry> memory_map; ///< ascending; the tree describes its RAM
    std::string_view command_line;              ///< without a NUL
    std::optional<GuestRange> initrd;
};

/// A flattened device tree (Devicetree Specification 0.4, version 17) as Linux on x86 reads it. It has interrupt
/// controllers by the bindings intel,ce4100-ioapic and intel,ce4100-lapic, vCPUs by their local APIC ids, COM1 and the
/// clock on an ISA bus, virtio devices (virtio,mmio), power-off and reboot by syscon, and /chosen. With NUMA nodes,
/// memory and vCPUs name their nodes, and there is a distance map.
/// The tree takes some 2 KiB, 60 bytes for each vCPU, and 110 for each virtio device.
[[nodiscard]] std::vector<std::byte> build_device_tree(const Hardware& hardware, const DeviceTreeBoot& boot);

} // namespace vmm::loader
