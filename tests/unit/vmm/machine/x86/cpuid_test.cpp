#include "vmm/machine/x86/cpuid.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <set>
#include <vector>

namespace vmm {
namespace {

using Cpuid = std::vector<kvm_cpuid_entry2>;

kvm_cpuid_entry2 leaf(std::uint32_t function, std::uint32_t index = 0) {
    kvm_cpuid_entry2 entry{};
    entry.function = function;
    entry.index = index;
    return entry;
}

/// The CPUID that a host of 16 cores with 2 threads each might support: every leaf about the topology.
Cpuid host_cpuid() {
    Cpuid cpuid;
    kvm_cpuid_entry2 features = leaf(1);
    features.eax = 0x00a20f10;
    features.ebx = 0x1f200800; // APIC id 31, 32 logical processors, CLFLUSH of 64 bytes
    features.edx = 1U << 28;
    cpuid.push_back(features);
    for (std::uint32_t index = 0; index < 4; ++index) { // data, instructions, level 2, level 3
        kvm_cpuid_entry2 caches = leaf(4, index);
        caches.eax = index == 3 ? 0x7c07c163 : index == 2 ? 0x7c004143 : 0x7c004121 + index;
        cpuid.push_back(caches);
        kvm_cpuid_entry2 amd_caches = leaf(0x8000001d, index);
        amd_caches.eax = index == 3 ? 0x0007c163 : index == 2 ? 0x00004143 : 0x00004121 + index;
        cpuid.push_back(amd_caches);
    }
    cpuid.push_back(leaf(4, 4)); // the end of the list
    cpuid.push_back(leaf(7));
    for (std::uint32_t index = 0; index < 3; ++index) {
        kvm_cpuid_entry2 topology = leaf(0xb, index);
        topology.edx = 31; // the host's own APIC id
        cpuid.push_back(topology);
        cpuid.push_back(leaf(0x1f, index));
    }
    kvm_cpuid_entry2 amd_features = leaf(0x80000001);
    amd_features.edx = 1U << 26;
    cpuid.push_back(amd_features);
    kvm_cpuid_entry2 sizes = leaf(0x80000008);
    sizes.eax = 0x3030;
    sizes.ecx = 0x501f;
    cpuid.push_back(sizes);
    kvm_cpuid_entry2 amd_topology = leaf(0x8000001e);
    amd_topology.eax = 31;
    amd_topology.ebx = 0x10f;
    amd_topology.ecx = 0x301;
    cpuid.push_back(amd_topology);
    return cpuid;
}

kvm_cpuid_entry2 find(const Cpuid& cpuid, std::uint32_t function, std::uint32_t index = 0) {
    const auto found = std::ranges::find_if(
        cpuid, [&](const kvm_cpuid_entry2& entry) { return entry.function == function && entry.index == index; });
    if (found == cpuid.end()) {
        ADD_FAILURE() << "no leaf " << std::hex << function << " index " << index;
        return {};
    }
    return *found;
}

std::uint32_t bits(std::uint32_t value, unsigned first, unsigned count) {
    return (value >> first) & ((1U << count) - 1U);
}

/// For each vCPU of each number of vCPUs that a guest can have.
template <typename Check>
void for_all_vcpus(Check check) {
    const Cpuid host = host_cpuid();
    for (unsigned vcpus = 1; vcpus <= 254 && !::testing::Test::HasFailure(); ++vcpus) {
        for (const unsigned id : std::set<unsigned>{0, vcpus / 2, vcpus - 1}) {
            check(guest_cpuid(host, vcpus, id, false), vcpus, id);
        }
    }
}

TEST(GuestCpuid, TellsEachVcpuItsApicId) {
    for_all_vcpus([](const Cpuid& cpuid, unsigned vcpus, unsigned id) {
        EXPECT_EQ(bits(find(cpuid, 1).ebx, 24, 8), id) << vcpus;
        EXPECT_EQ(find(cpuid, 0xb, 0).edx, id) << vcpus;
        EXPECT_EQ(find(cpuid, 0xb, 1).edx, id) << vcpus;
        EXPECT_EQ(find(cpuid, 0x8000001e).eax, id) << vcpus;
    });
}

TEST(GuestCpuid, CountsLogicalProcessorsInLeaf1) {
    for_all_vcpus([](const Cpuid& cpuid, unsigned vcpus, unsigned) {
        EXPECT_EQ(bits(find(cpuid, 1).ebx, 16, 8), vcpus);
        EXPECT_EQ(bits(find(cpuid, 1).edx, 28, 1), vcpus > 1 ? 1U : 0U) << "HTT: the count is valid";
    });
}

TEST(GuestCpuid, DescribesOneThreadACoreInLeafB) {
    for_all_vcpus([](const Cpuid& cpuid, unsigned vcpus, unsigned) {
        const kvm_cpuid_entry2 threads = find(cpuid, 0xb, 0);
        EXPECT_EQ(bits(threads.ecx, 8, 8), 1U) << "the level of threads";
        EXPECT_EQ(threads.eax, 0U);
        EXPECT_EQ(threads.ebx, 1U);
        const kvm_cpuid_entry2 cores = find(cpuid, 0xb, 1);
        EXPECT_EQ(bits(cores.ecx, 8, 8), 2U) << "the level of cores";
        EXPECT_EQ(cores.ebx, vcpus);
        const kvm_cpuid_entry2 end = find(cpuid, 0xb, 2);
        EXPECT_EQ(bits(end.ecx, 8, 8), 0U);
        EXPECT_EQ(end.ebx, 0U);
    });
}

TEST(GuestCpuid, PutsAllVcpusIntoOnePackage) {
    for_all_vcpus([](const Cpuid& cpuid, unsigned vcpus, unsigned id) {
        const unsigned package_shift = find(cpuid, 0xb, 1).eax;
        EXPECT_EQ(id >> package_shift, 0U) << vcpus;
        EXPECT_LT(1U << package_shift, 2 * vcpus) << "no more bits than needed";
        EXPECT_EQ(bits(find(cpuid, 0x80000008).ecx, 12, 4), package_shift) << "AMD says the same";
    });
}

TEST(GuestCpuid, CountsCoresInTheAmdLeaf) {
    for_all_vcpus([](const Cpuid& cpuid, unsigned vcpus, unsigned) {
        EXPECT_EQ(bits(find(cpuid, 0x80000008).ecx, 0, 8), vcpus - 1);
        EXPECT_EQ(bits(find(cpuid, 0x80000001).ecx, 1, 1), vcpus > 1 ? 1U : 0U) << "CmpLegacy";
    });
}

TEST(GuestCpuid, GivesEachVcpuACoreOfOneThreadOnOneNode) {
    for_all_vcpus([](const Cpuid& cpuid, unsigned vcpus, unsigned id) {
        const kvm_cpuid_entry2 topology = find(cpuid, 0x8000001e);
        EXPECT_EQ(bits(topology.ebx, 0, 8), id) << vcpus;
        EXPECT_EQ(bits(topology.ebx, 8, 8), 0U) << "threads a core, less one";
        EXPECT_EQ(bits(topology.ecx, 0, 8), 0U) << "the node";
        EXPECT_EQ(bits(topology.ecx, 8, 3), 0U) << "nodes, less one";
    });
}

TEST(GuestCpuid, SharesOnlyTheLastLevelCache) {
    for_all_vcpus([](const Cpuid& cpuid, unsigned vcpus, unsigned) {
        for (const std::uint32_t index : {0U, 1U, 2U}) {
            EXPECT_EQ(bits(find(cpuid, 4, index).eax, 14, 12), 0U);
            EXPECT_EQ(bits(find(cpuid, 0x8000001d, index).eax, 14, 12), 0U);
        }
        EXPECT_GE(bits(find(cpuid, 4, 3).eax, 14, 12) + 1, vcpus);
        EXPECT_EQ(bits(find(cpuid, 0x8000001d, 3).eax, 14, 12) + 1, vcpus);
    });
}

TEST(GuestCpuid, KeepsTheEndOfTheListOfCaches) {
    EXPECT_EQ(find(guest_cpuid(host_cpuid(), 4, 0, false), 4, 4).eax, 0U);
}

TEST(GuestCpuid, KeepsWhatIsNoTopology) {
    const Cpuid cpuid = guest_cpuid(host_cpuid(), 4, 1, false);
    EXPECT_EQ(find(cpuid, 1).eax, 0x00a20f10U);
    EXPECT_EQ(bits(find(cpuid, 1).ebx, 0, 16), 0x0800U);
    EXPECT_EQ(find(cpuid, 0x80000008).eax, 0x3030U);
    EXPECT_EQ(bits(find(cpuid, 4, 3).eax, 0, 14), 0x0163U);
}

TEST(GuestCpuid, SaysThatThereIsAHypervisor) {
    EXPECT_EQ(bits(find(guest_cpuid(host_cpuid(), 1, 0, false), 1).ecx, 31, 1), 1U);
}

TEST(GuestCpuid, OffersTheDeadlineTimerWhereTheKernelHasIt) {
    EXPECT_EQ(bits(find(guest_cpuid(host_cpuid(), 1, 0, true), 1).ecx, 24, 1), 1U);
    EXPECT_EQ(bits(find(guest_cpuid(host_cpuid(), 1, 0, false), 1).ecx, 24, 1), 0U);
}

TEST(GuestCpuid, HasEachLeafOnce) {
    const Cpuid cpuid = guest_cpuid(host_cpuid(), 4, 0, false);
    std::set<std::pair<std::uint32_t, std::uint32_t>> seen;
    for (const kvm_cpuid_entry2& entry : cpuid) {
        EXPECT_TRUE(seen.emplace(entry.function, entry.index).second)
            << std::hex << entry.function << " " << entry.index;
    }
}

TEST(GuestCpuid, MarksTheIndexOfTopologyLevelsAsSignificant) {
    const Cpuid cpuid = guest_cpuid(host_cpuid(), 4, 0, false);
    for (const std::uint32_t index : {0U, 1U, 2U}) {
        EXPECT_NE(find(cpuid, 0xb, index).flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX, 0U);
        EXPECT_EQ(find(cpuid, 0xb, index).ecx & 0xff, index);
    }
}

TEST(GuestCpuid, HasTheSecondTopologyLeafOnlyWhereTheHostHas) {
    EXPECT_EQ(find(guest_cpuid(host_cpuid(), 4, 3, false), 0x1f, 1).edx, 3U);
    Cpuid older = host_cpuid();
    std::erase_if(older, [](const kvm_cpuid_entry2& entry) { return entry.function == 0x1f; });
    const Cpuid cpuid = guest_cpuid(older, 4, 3, false);
    EXPECT_TRUE(std::ranges::none_of(cpuid, [](const kvm_cpuid_entry2& entry) { return entry.function == 0x1f; }));
}

TEST(GuestCpuid, DiffersBetweenVcpusInTheApicIdOnly) {
    // The width of physical addresses and all features are the same on all vCPUs, so that they may share a second
    // level.
    Cpuid first = guest_cpuid(host_cpuid(), 4, 0, true);
    const Cpuid third = guest_cpuid(host_cpuid(), 4, 2, true);
    ASSERT_EQ(first.size(), third.size());
    for (std::size_t i = 0; i < first.size(); ++i) {
        EXPECT_EQ(first[i].function, third[i].function);
        const bool names_the_vcpu = first[i].function == 1 || first[i].function == 0xb || first[i].function == 0x1f ||
                                    first[i].function == 0x8000001e;
        if (!names_the_vcpu) {
            EXPECT_EQ(first[i].eax, third[i].eax);
            EXPECT_EQ(first[i].ebx, third[i].ebx);
            EXPECT_EQ(first[i].ecx, third[i].ecx);
            EXPECT_EQ(first[i].edx, third[i].edx);
        }
    }
}

TEST(CpuidFacts, SayWhetherThereAreOneGibPages) {
    EXPECT_TRUE(has_one_gib_pages(host_cpuid()));
    EXPECT_FALSE(has_one_gib_pages(Cpuid{leaf(0x80000001)}));
    EXPECT_FALSE(has_one_gib_pages({}));
}

TEST(CpuidFacts, SayHowManyBitsAnAddressHas) {
    EXPECT_EQ(physical_address_bits(host_cpuid()), 48U);
    EXPECT_EQ(physical_address_bits(Cpuid{leaf(0x80000008)}), 36U);
    EXPECT_EQ(physical_address_bits({}), 36U);
}

TEST(CpuidFacts, AddressesFitUpToTheLastBitAndNoFurther) {
    EXPECT_TRUE(fits_address_bits(1ULL << 36, 36));
    EXPECT_FALSE(fits_address_bits((1ULL << 36) + 1, 36));
    EXPECT_FALSE(fits_address_bits(2ULL << 36, 36));
    EXPECT_TRUE(fits_address_bits(0, 36));
    EXPECT_TRUE(fits_address_bits(UINT64_MAX, 64));
}

/// Leaf 0 with the vendor's name.
kvm_cpuid_entry2 vendor(std::uint32_t ebx, std::uint32_t edx, std::uint32_t ecx) {
    kvm_cpuid_entry2 entry = leaf(0);
    entry.ebx = ebx;
    entry.edx = edx;
    entry.ecx = ecx;
    return entry;
}

// What broke: guests on Intel's processors were told so in bits that are reserved there.
TEST(GuestCpuid, CountsCoresInAmdsLeavesOnAmdsProcessorsOnly) {
    const struct {
        const char* name;
        kvm_cpuid_entry2 vendor;
        bool is_amd;
    } vendors[] = {{"GenuineIntel", vendor(0x756e6547, 0x49656e69, 0x6c65746e), false},
                   {"CentaurHauls", vendor(0x746e6543, 0x48727561, 0x736c7561), false},
                   {"AuthenticAMD", vendor(0x68747541, 0x69746e65, 0x444d4163), true},
                   {"HygonGenuine", vendor(0x6f677948, 0x6e65476e, 0x656e6975), true}};
    for (const auto& each : vendors) {
        Cpuid host = host_cpuid();
        host.push_back(each.vendor);
        const Cpuid cpuid = guest_cpuid(host, 4, 1, false);
        EXPECT_EQ(bits(find(cpuid, 0x80000001).ecx, 1, 1), each.is_amd ? 1U : 0U) << each.name << ": CmpLegacy";
        EXPECT_EQ(bits(find(cpuid, 0x80000008).ecx, 0, 8), each.is_amd ? 3U : 0U) << each.name << ": cores, less one";
        EXPECT_EQ(bits(find(cpuid, 0x80000008).ecx, 12, 4), each.is_amd ? 2U : 0U) << each.name << ": bits of the core";
        EXPECT_EQ(bits(find(cpuid, 1).ebx, 16, 8), 4U) << each.name << ": leaf 1 counts for all";
    }
}

constexpr CpuBrand kBrand{0x20444d41, 0x43595045, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10};

// What broke: KVM reports zeros, and Linux called the processor "17/01".
TEST(GuestCpuid, HasTheNameOfTheHostsProcessor) {
    Cpuid host = host_cpuid();
    kvm_cpuid_entry2 most = leaf(0x80000000);
    most.eax = 0x80000001;
    host.push_back(most);
    for (const std::uint32_t function : {0x80000002U, 0x80000003U, 0x80000004U}) {
        host.push_back(leaf(function));
    }
    const Cpuid cpuid = with_cpu_brand(host, kBrand);
    EXPECT_EQ(cpuid.size(), host.size());
    EXPECT_EQ(find(cpuid, 0x80000002).eax, 0x20444d41U);
    EXPECT_EQ(find(cpuid, 0x80000002).edx, 2U);
    EXPECT_EQ(find(cpuid, 0x80000003).ecx, 5U);
    EXPECT_EQ(find(cpuid, 0x80000004).edx, 10U);
    EXPECT_EQ(find(cpuid, 0x80000000).eax, 0x80000004U) << "a guest asks no further than this";
}

TEST(GuestCpuid, HasThatNameWhereKvmHasNoSuchLeaves) {
    const Cpuid cpuid = with_cpu_brand(host_cpuid(), kBrand);
    EXPECT_EQ(cpuid.size(), host_cpuid().size() + 3);
    EXPECT_EQ(find(cpuid, 0x80000003).eax, 3U);
}

TEST(GuestCpuid, IsLeftAsItIsWhereTheProcessorHasNoName) {
    EXPECT_EQ(with_cpu_brand(host_cpuid(), CpuBrand{}).size(), host_cpuid().size());
}

} // namespace
} // namespace vmm
