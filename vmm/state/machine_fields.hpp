// The fields of a machine's state beyond its vCPUs and devices: see vmm/state/fields.hpp.
#pragma once

#include "vmm/machine/memory_map.hpp"
#include "vmm/state/fields.hpp"

namespace vmm::machine_fields {

inline constexpr FieldSize kRegions{1, memory_map::kScratchMemslot};
inline constexpr FieldSize kSerialInputBytes{0, 64 * kKiB};
inline constexpr FieldSize kDeviceTreeBytes{0, 128 * kKiB};
inline constexpr std::size_t kMostOriginBytes = 64;

/// `machine` is a MachineState.
inline void machine(auto& fields, auto& machine) {
    fields.bytes("serial_input", machine.serial_input, kSerialInputBytes);
    fields.rows("memory", machine.memory, kRegions, [](auto& row, auto& region) {
        row.number(region.base);
        row.number(region.size);
    });
    fields.number("boot_memory_bytes", machine.boot_memory_bytes);
    fields.number("adopted_page_tables", machine.adopted_page_tables);
    fields.bytes("device_tree", machine.device_tree, kDeviceTreeBytes);
    fields.number("generation_id_at", machine.generation_id_at);
    fields.raw("generation_id", machine.generation_id);
}

/// `origin` is a SnapshotOrigin.
inline void origin(auto& fields, auto& origin) {
    fields.number("created_at", origin.created_at);
    fields.text("vmm_version", origin.vmm_version, kMostOriginBytes);
    fields.text("kernel_release", origin.kernel_release, kMostOriginBytes);
    fields.text("cpu_vendor", origin.cpu_vendor, kMostOriginBytes);
    fields.text("cpu_model", origin.cpu_model, kMostOriginBytes);
}

} // namespace vmm::machine_fields
