#include "vmm/state/x86/missing_features.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

namespace vmm {
namespace {

using Cpuid = std::vector<kvm_cpuid_entry2>;
using Names = std::vector<std::string>;

kvm_cpuid_entry2 leaf(std::uint32_t function, std::uint32_t index = 0) {
    kvm_cpuid_entry2 entry{};
    entry.function = function;
    entry.index = index;
    return entry;
}

TEST(MissingFeatures, AreNamedWithTheirBits) {
    Cpuid saved{leaf(0x80000001), leaf(0x7), leaf(0x7, 1), leaf(0x1)};
    saved[0].edx = 1U << 29;           // lm
    saved[1].ebx = 1U << 16 | 1U << 5; // avx512f, avx2
    saved[2].eax = 1U << 4;            // avx_vnni
    saved[3].ecx = 1U << 28;           // avx
    Cpuid offered{leaf(0x7), leaf(0x80000001)};
    offered[0].ebx = 1U << 5;
    const Names names{"avx (leaf 0x1, ECX bit 28)", "avx512f (leaf 0x7, EBX bit 16)",
                      "avx_vnni (leaf 0x7 index 1, EAX bit 4)", "lm (leaf 0x80000001, EDX bit 29)"};
    EXPECT_EQ(missing_features(saved, offered), names);
}

TEST(MissingFeatures, AreNoneWhereTheHostHasMore) {
    Cpuid saved{leaf(0x1)};
    saved[0].ecx = 1U << 28;
    Cpuid offered = saved;
    offered[0].ecx |= 1U << 20;
    EXPECT_EQ(missing_features(saved, offered), Names{});
    EXPECT_EQ(missing_features({}, offered), Names{});
}

TEST(MissingFeatures, OfBitsThatHaveNoNameAreSaidByTheirBits) {
    Cpuid saved{leaf(0x7)};
    saved[0].ebx = 1U << 22;
    EXPECT_EQ(missing_features(saved, {}), Names{"a feature without a name (leaf 0x7, EBX bit 22)"});
}

TEST(MissingFeatures, AreNotWhatTheGuestSwitchesOnOrTheMachineIs) {
    Cpuid saved{leaf(0x1), leaf(0x7), leaf(0x80000001), leaf(0x40000000)};
    saved[0].ecx = 1U << 27 | 1U << 31 | 1U << 3; // OSXSAVE, hypervisor, MONITOR
    saved[0].edx = 1U << 9 | 1U << 28;            // APIC, HTT
    saved[0].eax = saved[0].ebx = UINT32_MAX;     // no features: a signature, and the vCPU's number
    saved[1].ecx = 1U << 4;                       // OSPKE
    saved[2].ecx = 1U << 1;                       // CmpLegacy
    saved[2].edx = 1U << 9;
    saved[3].eax = UINT32_MAX;
    EXPECT_EQ(missing_features(saved, {}), Names{});
}

TEST(MissingFeatures, AreOneLineInAMessage) {
    EXPECT_EQ(describe_missing_features(Names{}), "");
    EXPECT_EQ(describe_missing_features(Names{"a"}), "a");
    EXPECT_EQ(describe_missing_features(Names{"a", "b"}), "a and b");
    EXPECT_EQ(describe_missing_features(Names{"a", "b", "c"}), "a, b and c");
    EXPECT_EQ(describe_missing_features(Names{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"}),
              "a, b, c, d, e, f, g, h and 2 more");
}

} // namespace
} // namespace vmm
