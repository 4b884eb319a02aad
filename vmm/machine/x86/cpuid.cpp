#include "vmm/machine/x86/cpuid.hpp"

#include <cpuid.h>

#include <algorithm>
#include <bit>
#include <cstdint>

namespace vmm {

namespace {

constexpr std::uint32_t kVendor = 0x0;
constexpr std::uint32_t kFeatures = 0x1;
constexpr std::uint32_t kIntelCaches = 0x4;
constexpr std::uint32_t kExtendedTopology = 0xb;
constexpr std::uint32_t kExtendedTopologyV2 = 0x1f;
constexpr std::uint32_t kExtendedMaximum = 0x80000000;
constexpr std::uint32_t kAmdFeatures = 0x80000001;
constexpr std::uint32_t kFirstBrand = 0x80000002;
constexpr std::uint32_t kLastBrand = 0x80000004;
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
    bool is_amd; ///< whether AMD's leaves count them, too; on Intel's processors those bits are reserved

    /// The number of bits of an APIC id that identify the core.
    [[nodiscard]] unsigned core_bits() const { return static_cast<unsigned>(std::bit_width(cores - 1)); }
};

/// The caches of level 1 and 2 belong to one core. Larger ones belong to all cores.
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
        entry.ecx = topology.cores > 1 && topology.is_amd ? entry.ecx | kCmpLegacyBit : entry.ecx & ~kCmpLegacyBit;
        break;
    case kAddressSizes:
        entry.ecx = with_bits(entry.ecx, 0, 8, topology.is_amd ? topology.cores - 1 : 0);
        entry.ecx = with_bits(entry.ecx, 12, 4, topology.is_amd ? topology.core_bits() : 0);
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
    const auto entry =
        std::ranges::find_if(cpuid, [function](const kvm_cpuid_entry2& leaf) { return leaf.function == function; });
    return entry == cpuid.end() ? nullptr : &*entry;
}

/// Whether the processor counts its cores in AMD's way, by the vendor's name in leaf 0. Hygon's processors do this,
/// too.
bool counts_cores_as_amd(std::span<const kvm_cpuid_entry2> cpuid) {
    constexpr std::array<std::uint32_t, 3> kAuthenticAmd{0x68747541, 0x69746e65, 0x444d4163}; // EBX, EDX, ECX
    constexpr std::array<std::uint32_t, 3> kHygonGenuine{0x6f677948, 0x6e65476e, 0x656e6975};
    const kvm_cpuid_entry2* const vendor = find(cpuid, kVendor);
    if (vendor == nullptr) {
        return true;
    }
    const std::array<std::uint32_t, 3> name{vendor->ebx, vendor->edx, vendor->ecx};
    return name == kAuthenticAmd || name == kHygonGenuine;
}

} // namespace

std::vector<kvm_cpuid_entry2> guest_cpuid(std::span<const kvm_cpuid_entry2> supported, unsigned vcpus, unsigned apic_id,
                                          bool tsc_deadline) {
    const Topology topology{vcpus, apic_id, counts_cores_as_amd(supported)};
    std::vector<kvm_cpuid_entry2> cpuid;
    bool has_version_2 = false;
    for (kvm_cpuid_entry2 entry : supported) {
        if (entry.function == kExtendedTopology || entry.function == kExtendedTopologyV2) {
            has_version_2 = has_version_2 || entry.function == kExtendedTopologyV2;
            continue; // It is built again below, because KVM's entries describe the host's cores.
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

std::array<std::uint32_t, 3> host_cpu_vendor() noexcept {
    std::uint32_t eax = 0;
    std::uint32_t ebx = 0;
    std::uint32_t ecx = 0;
    std::uint32_t edx = 0;
    static_cast<void>(__get_cpuid(0, &eax, &ebx, &ecx, &edx)); // Every processor has this leaf.
    return {ebx, edx, ecx};
}

CpuBrand host_cpu_brand() noexcept {
    CpuBrand brand{};
    for (std::uint32_t leaf = kFirstBrand; leaf <= kLastBrand; ++leaf) {
        auto* const words = &brand.at(std::size_t{4} * (leaf - kFirstBrand));
        if (__get_cpuid(leaf, &words[0], &words[1], &words[2], &words[3]) == 0) {
            return {};
        }
    }
    return brand;
}

std::vector<kvm_cpuid_entry2> with_cpu_brand(std::vector<kvm_cpuid_entry2> cpuid, const CpuBrand& brand) {
    if (std::ranges::all_of(brand, [](std::uint32_t word) { return word == 0; })) {
        return cpuid;
    }
    std::erase_if(cpuid, [](const kvm_cpuid_entry2& entry) {
        return entry.function >= kFirstBrand && entry.function <= kLastBrand;
    });
    for (std::uint32_t leaf = kFirstBrand; leaf <= kLastBrand; ++leaf) {
        const auto* const words = &brand.at(std::size_t{4} * (leaf - kFirstBrand));
        kvm_cpuid_entry2 entry{};
        entry.function = leaf;
        entry.eax = words[0];
        entry.ebx = words[1];
        entry.ecx = words[2];
        entry.edx = words[3];
        cpuid.push_back(entry);
    }
    for (kvm_cpuid_entry2& entry : cpuid) {
        if (entry.function == kExtendedMaximum) {
            entry.eax = std::max(entry.eax, kLastBrand);
        }
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
