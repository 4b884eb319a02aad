#include "vmm/host/host_facts.hpp"

#include <algorithm>
#include <map>
#include <optional>
#include <string>

#include "devices/pci/root_bus.hpp"
#include "kvm/host/error.hpp"
#include "loader/acpi_numa.hpp"
#include "prefault/host/huge_page_pool.hpp"
#include "prefault/host/pin.hpp"
#include "prefault/x86/second_level_host.hpp"
#include "vmm/host/memory_need.hpp"
#include "vmm/machine/custom_devices.hpp"
#include "vmm/machine/memory_map.hpp"
#include "vmm/machine/virtio_devices.hpp"
#include "vmm/network/user_network.hpp"

namespace vmm {

namespace {

/// The bytes of guest memory that a prefault populates.
std::uint64_t populated_bytes(const Config& config) {
    if (config.prefault.scope == prefault::Scope::kNone) {
        return 0;
    }
    std::uint64_t bytes = config.prefault.ranges.empty() ? config.memory_bytes : 0;
    for (const GuestRange& range : config.prefault.ranges) {
        bytes += range.size;
    }
    return bytes;
}

/// Whether the guest goes on from a state, which says how it reaches its devices.
bool goes_on(const Config& config) {
    return config.restore || config.incoming;
}

/// Throws Error if there are more virtio devices than the machine has places for, or an interrupt line is wanted twice.
void check_devices(const Config& config, const prefault::NumaTopology& topology) {
    const std::size_t devices = count_virtio_devices(config, topology);
    constexpr std::size_t kMostByMmio = memory_map::kVirtioGsis.size();
    constexpr std::size_t kMostByPci = devices::pci::RootBus::kSlots - 1; // The host bridge has one.
    if (devices > kMostByPci) {
        throw Error("cannot give the guest " + std::to_string(devices) + " virtio devices: its PCI bus has slots for " +
                    std::to_string(kMostByPci));
    }
    if (devices > kMostByMmio && !goes_on(config) && config.transport == VirtioTransport::kMmio) {
        throw Error("cannot give the guest " + std::to_string(devices) +
                    " virtio devices: there are interrupt lines for " + std::to_string(kMostByMmio) + ", and " +
                    std::to_string(kMostByPci) + " slots on a PCI bus (take Config::transport=pci)");
    }
    check_interrupt_lines(config, devices);
}

} // namespace

HostFacts HostFacts::read() {
    return {prefault::NumaTopology::read(), read_memory_facts(), read_process_facts(),
            prefault::detect_second_level().may_be_shadow()};
}

void validate_more_memory(const Config& config, std::uint64_t bytes) {
    if (is_from_pool(config.page_size)) {
        prefault::check_huge_page_pool(config.page_size, bytes);
    }
    check_room_for_more(config, bytes);
    prefault::check_may_pin(config.pin, bytes);
}

prefault::HugePageDemand huge_page_demand(const Config& config, const prefault::NumaTopology& topology) {
    prefault::HugePageDemand demand;
    demand.page_size = config.page_size;
    demand.will_be_raised = config.reserve_huge_pages;
    std::map<std::optional<unsigned>, std::uint64_t> by_node;
    const std::uint64_t granule = std::max(2 * kMiB, largest_page_bytes(config.page_size));
    for (const prefault::PlacedRange& placed :
         prefault::place(memory_map::ram_layout(config.memory_bytes), config.numa, topology, granule)) {
        by_node[placed.node] += placed.range.size;
    }
    for (const auto& [node, bytes] : by_node) {
        demand.shares.push_back({node, bytes});
    }
    return demand;
}

void check_against_host(const Config& config, const HostFacts& facts) {
    const Config wanted = resolved(config);
    prefault::check_cpus_usable(wanted.prefault.cpus, "Config::prefault.cpus");
    prefault::check_cpus_usable(wanted.vcpu_cpus, "Config::vcpu_cpus");
    prefault::check_cpus_usable(wanted.device_cpus, "Config::device_cpus");
    for (const NetConfig& net : wanted.nets) {
        if (net.user) {
            check_user_network(net);
        }
    }
    prefault::check_numa_policy(wanted.numa, facts.nodes, wanted.memory_bytes);
    if (wanted.numa.kind == prefault::NumaPolicy::Kind::kSplit && facts.nodes.nodes.size() > loader::kMaxAcpiNodes) {
        throw Error("cannot split guest memory over " + std::to_string(facts.nodes.nodes.size()) +
                    " NUMA nodes: a guest can be told of " + std::to_string(loader::kMaxAcpiNodes) +
                    " (take Config::numa=interleave or Config::numa.node)");
    }
    check_devices(wanted, facts.nodes);
    if (is_from_pool(wanted.page_size) && !wanted.memory_from &&
        !is_handed_over(wanted)) { // its memory is reserved already
        prefault::check_huge_page_pool(huge_page_demand(wanted, facts.nodes));
    }
    check_host_room(wanted, facts);
    prefault::check_may_pin(wanted.pin,
                            wanted.prefault.ranges.empty() || wanted.prefault.scope == prefault::Scope::kNone
                                ? wanted.memory_bytes
                                : populated_bytes(config));
}

} // namespace vmm
