#include "loader/acpi_numa.hpp"

#include <algorithm>
#include <cassert>
#include <span>
#include <utility>

#include "loader/acpi_table.hpp"

namespace vmm::loader {
namespace {

constexpr std::uint32_t kEnabled = 1U << 0U; // in both kinds of entry
constexpr std::uint32_t kHotPluggable = 1U << 1U;

/// A vCPU by its local APIC id (ACPI 6.3, 5.2.16.1).
void put_processor(AcpiTable& table, std::size_t apic_id, unsigned node) {
    constexpr std::uint8_t kType = 0;
    constexpr std::uint8_t kBytes = 16;
    assert(apic_id < UINT8_MAX); // 255 means all processors
    table.put(kType).put(kBytes);
    table.put(static_cast<std::uint8_t>(node)); // bits 7 to 0
    table.put(static_cast<std::uint8_t>(apic_id));
    table.put(kEnabled);
    table.put_zeros(1); // local SAPIC EID
    table.put_zeros(3); // bits 31 to 8 of the node
    table.put_zeros(4); // clock domain
}

/// A range of memory (ACPI 6.3, 5.2.16.2).
void put_memory(AcpiTable& table, const AcpiNumaMemory& memory) {
    constexpr std::uint8_t kType = 1;
    constexpr std::uint8_t kBytes = 40;
    table.put(kType).put(kBytes);
    table.put(std::uint32_t{memory.node});
    table.put_zeros(2);
    table.put(to_integer(memory.range.base));
    table.put(memory.range.size);
    table.put_zeros(4);
    table.put(memory.is_pluggable ? kEnabled | kHotPluggable : kEnabled);
    table.put_zeros(8);
}

/// The largest node number plus one.
std::size_t count_nodes(const AcpiNuma& numa) {
    unsigned largest = 0;
    for (const AcpiNumaMemory& memory : numa.memory) {
        largest = std::max(largest, memory.node);
    }
    for (const unsigned node : numa.vcpu_nodes) {
        largest = std::max(largest, node);
    }
    return std::size_t{largest} + 1;
}

[[maybe_unused]] bool are_plausible(std::span<const std::uint8_t> distances, std::size_t nodes) {
    if (distances.size() != nodes * nodes) {
        return false;
    }
    for (std::size_t i = 0; i < distances.size(); ++i) {
        const bool same_node = i / nodes == i % nodes;
        if (same_node ? distances[i] != kAcpiLocalDistance : distances[i] <= kAcpiLocalDistance) {
            return false;
        }
    }
    return true;
}

} // namespace

std::vector<std::byte> build_srat(const AcpiNuma& numa) {
    constexpr std::uint8_t kRevision = 3;
    assert(count_nodes(numa) <= kMaxAcpiNodes);
    assert(!numa.memory.empty() && numa.memory.size() <= kMaxAcpiNumaMemory);
    AcpiTable table{"SRAT", kRevision};
    table.put(std::uint32_t{1}); // reserved, always 1
    table.put_zeros(8);
    for (std::size_t i = 0; i < numa.vcpu_nodes.size(); ++i) {
        put_processor(table, i, numa.vcpu_nodes[i]);
    }
    for (const AcpiNumaMemory& memory : numa.memory) {
        assert(memory.range.size > 0);
        put_memory(table, memory);
    }
    return std::move(table).finish();
}

std::vector<std::byte> build_slit(const AcpiNuma& numa) {
    constexpr std::uint8_t kRevision = 1;
    const std::size_t nodes = count_nodes(numa);
    assert(nodes <= kMaxAcpiNodes);
    assert(are_plausible(numa.distances, nodes));
    AcpiTable table{"SLIT", kRevision};
    table.put(std::uint64_t{nodes});
    table.put_bytes(std::as_bytes(std::span{numa.distances}));
    return std::move(table).finish();
}

} // namespace vmm::loader
