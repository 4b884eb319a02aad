#include "vmm/x86_cpuid.hpp"

#include <algorithm>
#include <bit>
#include <cstdint>

namespace vmm {

namespace {

constexpr std::uint32_t kFeatures = 0x1;
constexpr std::uint32_t kIntelCaches = 0x4;
constexpr std::uint32_t kExtendedTopology = 0xb;
constexpr std::uint32_t kExtendedTopologyV2 = 0x1f;
constexpr std::uint32_t kAmdFeatures = 0x80000001;
constexpr std::uint32_t kAddressSizes = 0x80000008;
constexpr std::uint32_t kAmdCaches = 0x8000001d;
constexpr std::uint32_t kAmdTopology = 0x8000001e;

constexpr std::uint32_t kHyperthreadingBit = 1U << 28; // leaf 1, EDX: the count in EBX is valid
constexpr std::uint32_t kTscDeadlineBit = 1U << 24;    // leaf 1, ECX
constexpr std::uint32_t kHypervisorBit = 1U << 31;     // leaf 1, ECX
constexpr std::uint32_t kCmpLegacyBit = 1U << 1;       // 0x80000001, ECX: the "threads" of leaf 1 are cores
constexpr std::uint32_t kOneGibPagesBit = 1U << 26;    // 0x80000001, EDX

/// Replaces bits [first, first + width) of `value`.
std::uint32_t with_bits(std::uint32_t value, unsigned first, unsigned width, std::uint32_t bits) {
    const std::uint32_t mask = ((1U << width) - 1U) << first;
    return (value & ~mask) | ((bits << first) & mask);
}

/// One socket of cores.
struct Topology {
    unsigned cores;
    unsigned apic_id;

    /// How many bits of an APIC id name the core.
    [[nodiscard]] unsigned core_bits() const { return static_cast<unsigned>(std::bit_width(cores - 1)); }
};

/// The caches of level 1 and 2 belong to one core, larger ones to all.
unsigned sharers_of_cache(std::uint32_t eax, const Topology& topology) {
    const std::uint32_t level = (eax >> 5) & 7;
    return level <= 2 ? 1 : topology.cores;
}

void set_topology(kvm_cpuid_entry2& entry, const Topology& topology) {
    switch (entry.function) {
    case kFeatures:
        entry.ebx = with_bits(entry.ebx, 24, 8, topology.apic_id);
        entry.ebx = with_bits(entry.ebx, 16, 8, topology.cores);
        entry.edx = topology.cores > 1 ? entry.edx | kHyperthreadingBit : entry.edx & ~kHyperthreadingBit;
        break;
    case kIntelCaches:
        if ((entry.eax & 0x1f) != 0) {
            entry.eax = with_bits(entry.eax, 14, 12, std::bit_ceil(sharers_of_cache(entry.eax, topology)) - 1);
            entry.eax = with_bits(entry.eax, 26, 6, std::min(63U, (1U << topology.core_bits()) - 1));
        }
        break;
    case kAmdFeatures:
        entry.ecx = topology.cores > 1 ? entry.ecx | kCmpLegacyBit : entry.ecx & ~kCmpLegacyBit;
        break;
    case kAddressSizes:
        entry.ecx = with_bits(entry.ecx, 0, 8, topology.cores - 1);
        entry.ecx = with_bits(entry.ecx, 12, 4, topology.core_bits());
        break;
    case kAmdCaches:
        if ((entry.eax & 0x1f) != 0) {
            entry.eax = with_bits(entry.eax, 14, 12, sharers_of_cache(entry.eax, topology) - 1);
        }
        break;
    case kAmdTopology:
        entry.eax = topology.apic_id;
        entry.ebx = topology.apic_id & 0xff; // core id; one thread a core
        entry.ecx = 0;                       // one node, number 0
        break;
    default:
        break;
    }
}

/// The levels of leaf 0xb (or 0x1f): threads of a core, cores of the package, and the end of the list.
void append_topology_levels(std::vector<kvm_cpuid_entry2>& cpuid, std::uint32_t function, const Topology& topology) {
    constexpr std::uint32_t kThreadLevel = 1;
    constexpr std::uint32_t kCoreLevel = 2;
    const auto append = [&](std::uint32_t index, std::uint32_t shift, std::uint32_t count, std::uint32_t type) {
        kvm_cpuid_entry2 entry{};
        entry.function = function;
        entry.index = index;
        entry.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        entry.eax = shift;
        entry.ebx = count;
        entry.ecx = (type << 8) | index;
        entry.edx = topology.apic_id;
        cpuid.push_back(entry);
    };
    append(0, 0, 1, kThreadLevel);
    append(1, topology.core_bits(), topology.cores, kCoreLevel);
    append(2, 0, 0, 0);
}

const kvm_cpuid_entry2* find(std::span<const kvm_cpuid_entry2> cpuid, std::uint32_t function) {
    const auto entry = std::find_if(cpuid.begin(), cpuid.end(),
                                    [function](const kvm_cpuid_entry2& leaf) { return leaf.function == function; });
    return entry == cpuid.end() ? nullptr : &*entry;
}

} // namespace

std::vector<kvm_cpuid_entry2> guest_cpuid(std::span<const kvm_cpuid_entry2> supported, unsigned vcpus, unsigned apic_id,
                                          bool tsc_deadline) {
    const Topology topology{vcpus, apic_id};
    std::vector<kvm_cpuid_entry2> cpuid;
    bool has_version_2 = false;
    for (kvm_cpuid_entry2 entry : supported) {
        if (entry.function == kExtendedTopology || entry.function == kExtendedTopologyV2) {
            has_version_2 = has_version_2 || entry.function == kExtendedTopologyV2;
            continue; // Built anew below: KVM's entries describe the host's.
        }
        set_topology(entry, topology);
        if (entry.function == kFeatures) {
            entry.ecx |= kHypervisorBit;
            entry.ecx = tsc_deadline ? entry.ecx | kTscDeadlineBit : entry.ecx & ~kTscDeadlineBit;
        }
        cpuid.push_back(entry);
    }
    append_topology_levels(cpuid, kExtendedTopology, topology);
    if (has_version_2) {
        append_topology_levels(cpuid, kExtendedTopologyV2, topology);
    }
    return cpuid;
}

bool has_one_gib_pages(std::span<const kvm_cpuid_entry2> cpuid) {
    const kvm_cpuid_entry2* const features = find(cpuid, kAmdFeatures);
    return features != nullptr && (features->edx & kOneGibPagesBit) != 0;
}

unsigned physical_address_bits(std::span<const kvm_cpuid_entry2> cpuid) {
    const kvm_cpuid_entry2* const sizes = find(cpuid, kAddressSizes);
    return sizes != nullptr && (sizes->eax & 0xff) != 0 ? sizes->eax & 0xff : 36;
}

} // namespace vmm
