// The features that a guest is offered: the meaning of --cpu and --nested, and their effects.

#include "vmm/machine/x86/cpu_model.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "kvm/host/error.hpp"
#include "support/host_errors.hpp"
#include "vmm/machine/x86/cpu_features.hpp"

namespace vmm {
namespace {

using Cpuid = std::vector<kvm_cpuid_entry2>;
using testing::error_of;
using testing::mentions;

kvm_cpuid_entry2& leaf(Cpuid& cpuid, std::uint32_t function, std::uint32_t index = 0) {
    for (kvm_cpuid_entry2& entry : cpuid) {
        if (entry.function == function && entry.index == index) {
            return entry;
        }
    }
    kvm_cpuid_entry2& entry = cpuid.emplace_back();
    entry.function = function;
    entry.index = index;
    return entry;
}

const kvm_cpuid_entry2& leaf(const Cpuid& cpuid, std::uint32_t function, std::uint32_t index = 0) {
    const auto found = std::ranges::find_if(
        cpuid, [&](const auto& entry) { return entry.function == function && entry.index == index; });
    if (found == cpuid.end()) {
        throw Error("no such leaf");
    }
    return *found;
}

/// A host whose feature bits are all set, also those without a name, with the state of all features.
Cpuid full_host() {
    Cpuid cpuid;
    for (const CpuFeatureBit& feature : cpu_feature_bits()) {
        leaf(cpuid, feature.word.function, feature.word.index).*feature.word.register_ = 0xffffffff;
    }
    leaf(cpuid, 0).eax = 0x1f;
    leaf(cpuid, 0xa).eax = 0x08300805;
    leaf(cpuid, 0x14).ebx = 0xf;
    leaf(cpuid, 0x8000000a).edx = 0xffff;
    kvm_cpuid_entry2& state = leaf(cpuid, 0xd, 0);
    state.eax = 0x000602ff; // x87, SSE, AVX, MPX, AVX-512, PKRU, AMX
    state.ebx = 11008;
    state.ecx = 11008;
    leaf(cpuid, 0xd, 1).ecx = 0x1900; // PT, CET
    const struct {
        std::uint32_t index, bytes, offset, flags;
    } components[] = {{2, 256, 576, 0},  {3, 64, 960, 0},    {4, 64, 1024, 0},  {5, 64, 1088, 0},
                      {6, 512, 1152, 0}, {7, 1024, 1664, 0}, {8, 128, 0, 1},    {9, 8, 2688, 0},
                      {11, 16, 0, 1},    {12, 24, 0, 1},     {17, 64, 2752, 2}, {18, 8192, 2816, 2}};
    for (const auto& [index, bytes, offset, flags] : components) {
        kvm_cpuid_entry2& component = leaf(cpuid, 0xd, index);
        component.eax = bytes;
        component.ebx = offset;
        component.ecx = flags;
    }
    return cpuid;
}

Cpuid cpuid_of(const std::string& text, bool nested = false) {
    return CpuModel::parse(text, nested).applied_to(full_host());
}

bool has(const Cpuid& cpuid, std::string_view feature) {
    return has_cpu_feature(cpuid, feature);
}

std::string refusal(const std::string& text, bool nested = false) {
    return error_of([&] { static_cast<void>(CpuModel::parse(text, nested)); });
}

TEST(CpuModel, OfTheHostHasAllButGuestsOfItsOwn) {
    const Cpuid cpuid = cpuid_of("host");
    for (const std::string_view feature : cpu_feature_names()) {
        const bool nests = feature == "vmx" || feature == "svm" || feature == "skinit";
        EXPECT_EQ(has(cpuid, feature), !nests) << feature;
    }
    EXPECT_EQ(leaf(cpuid, 0xd).ecx, 11008U);
    EXPECT_EQ(leaf(cpuid, 7).edx & 1U, 1U) << "what has no name is the host's, too";
}

TEST(CpuModel, TakesEachFeatureAwayByItsName) {
    for (const std::string_view feature : cpu_feature_names()) {
        const std::string text = "host,-" + std::string(feature);
        const std::string why = refusal(text);
        if (mentions(why, "no guest can do without")) {
            continue;
        }
        ASSERT_EQ(why, "") << text;
        EXPECT_FALSE(has(cpuid_of(text), feature)) << text;
    }
}

TEST(CpuModel, TakesWhatNeedsAFeatureAwayWithIt) {
    for (const auto& [feature, needs] : cpu_feature_needs()) {
        const std::string text = "host,-" + std::string(needs);
        if (refusal(text).empty()) {
            EXPECT_FALSE(has(cpuid_of(text), feature)) << text << " leaves " << feature;
        }
    }
    const Cpuid without_avx = cpuid_of("host,-avx");
    for (const char* const feature : {"avx2", "fma", "f16c", "avx512f", "avx512vl", "vaes", "avx_vnni"}) {
        EXPECT_FALSE(has(without_avx, feature)) << feature;
    }
    EXPECT_TRUE(has(without_avx, "xsave"));
    EXPECT_TRUE(has(without_avx, "sse4_2"));
    EXPECT_TRUE(has(without_avx, "aes"));
}

TEST(CpuModel, TakesTheStateOfAFeatureAwayWithIt) {
    Cpuid cpuid = cpuid_of("host,-avx512f");
    EXPECT_EQ(leaf(cpuid, 0xd).eax, 0x0006021fU) << "without the three parts of AVX-512";
    EXPECT_EQ(leaf(cpuid, 0xd, 6).eax, 0U);
    EXPECT_EQ(leaf(cpuid, 0xd, 2).eax, 256U);
    EXPECT_EQ(leaf(cpuid, 0xd).ecx, 11008U) << "AMX's state lies behind it";
    cpuid = cpuid_of("host,-amx_tile");
    EXPECT_EQ(leaf(cpuid, 0xd).eax, 0x000002ffU);
    EXPECT_EQ(leaf(cpuid, 0xd).ecx, 2696U) << "the last is PKRU's";
    cpuid = cpuid_of("host,-avx,-pku,-mpx,-amx_tile");
    EXPECT_EQ(leaf(cpuid, 0xd).eax, 3U);
    EXPECT_EQ(leaf(cpuid, 0xd).ecx, 576U);
    EXPECT_EQ(leaf(cpuid, 0xd).ebx, 576U);
    cpuid = cpuid_of("host,-intel_pt");
    EXPECT_EQ(leaf(cpuid, 0xd, 1).ecx, 0x1800U) << "supervisor state, too";
    cpuid = cpuid_of("host,-xsaves");
    EXPECT_EQ(leaf(cpuid, 0xd, 1).ecx, 0U);
    EXPECT_EQ(leaf(cpuid, 0xd, 12).eax, 0U);
    cpuid = cpuid_of("host,-xsave");
    for (const kvm_cpuid_entry2& entry : cpuid) {
        EXPECT_TRUE(entry.function != 0xd || (entry.eax | entry.ebx | entry.ecx | entry.edx) == 0) << entry.index;
    }
}

TEST(CpuModel, ClearsTheLeafOfAFeatureThatIsGone) {
    EXPECT_EQ(leaf(cpuid_of("host,-intel_pt"), 0x14).ebx, 0U);
    EXPECT_EQ(leaf(cpuid_of("host"), 0x14).ebx, 0xfU);
}

// What broke: a host with nested=1 offered VMX or SVM to every guest.
TEST(CpuModel, OffersVirtualisationOnlyWhereItIsAskedFor) {
    const Cpuid without = cpuid_of("host");
    EXPECT_EQ(leaf(without, 1).ecx & (1U << 5), 0U);
    EXPECT_EQ(leaf(without, 0x80000001).ecx & (1U << 2), 0U);
    EXPECT_EQ(leaf(without, 0x8000000a).edx, 0U);
    for (const char* const text : {"host", "x86-64-v2"}) {
        const Cpuid with = cpuid_of(text, true);
        EXPECT_NE(leaf(with, 1).ecx & (1U << 5), 0U) << text;
        EXPECT_NE(leaf(with, 0x80000001).ecx & (1U << 2), 0U) << text;
        EXPECT_EQ(leaf(with, 0x8000000a).edx, 0xffffU) << text;
    }
    EXPECT_TRUE(mentions(refusal("host,+vmx"), "Config::nested=true"));
    EXPECT_EQ(refusal("host,+vmx", true), "");
    EXPECT_EQ(refusal("host,-svm"), "");
}

TEST(CpuModel, RefusesNestingThatTheHostDoesNotOffer) {
    Cpuid host = full_host();
    leaf(host, 1).ecx &= ~(1U << 5);
    CpuModel::parse("host", true).check_offered(host); // SVM is offered
    leaf(host, 0x80000001).ecx &= ~(1U << 2);
    const std::string why = error_of([&] { CpuModel::parse("host", true).check_offered(host); });
    EXPECT_TRUE(mentions(why, "Config::nested=true")) << why;
    EXPECT_TRUE(mentions(why, "nested=1")) << why;
    CpuModel::parse("host", false).check_offered(host);
}

TEST(CpuModel, OfALevelHasTheSameOnEveryHost) {
    const struct {
        const char* name;
        std::vector<const char*> has;
        std::vector<const char*> lacks;
    } levels[] = {{"x86-64-v1", {"sse2", "cx8", "lm", "nx", "apic"}, {"pni", "cx16", "popcnt", "xsave", "avx"}},
                  {"x86-64-v2", {"pni", "ssse3", "sse4_2", "popcnt", "cx16", "lahf_lm"}, {"xsave", "avx", "aes"}},
                  {"x86-64-v3", {"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}, {"avx512f", "aes"}},
                  {"x86-64-v4", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}, {"amx_tile", "sha_ni"}}};
    Cpuid small = full_host(); // Another host: it has only what level 4 needs, and what every host has.
    for (const CpuFeatureBit& feature : cpu_feature_bits()) {
        if (!has(CpuModel::parse("x86-64-v4", false).applied_to(full_host()), feature.name)) {
            leaf(small, feature.word.function, feature.word.index).*feature.word.register_ &= ~(1U << feature.bit);
        }
    }
    leaf(small, 0xa).eax = 0x07300404;
    for (const auto& level : levels) {
        const Cpuid cpuid = cpuid_of(level.name);
        for (const char* const feature : level.has) {
            EXPECT_TRUE(has(cpuid, feature)) << level.name << " " << feature;
        }
        for (const char* const feature : level.lacks) {
            EXPECT_FALSE(has(cpuid, feature)) << level.name << " " << feature;
        }
        const Cpuid other = CpuModel::parse(level.name, false).applied_to(small);
        ASSERT_EQ(cpuid.size(), other.size());
        for (std::size_t i = 0; i < cpuid.size(); ++i) {
            const kvm_cpuid_entry2& a = cpuid[i];
            const kvm_cpuid_entry2& b = leaf(other, a.function, a.index);
            EXPECT_TRUE(a.eax == b.eax && a.ebx == b.ebx && a.ecx == b.ecx && a.edx == b.edx)
                << level.name << " leaf " << std::hex << a.function << "." << a.index;
        }
    }
    EXPECT_EQ(leaf(cpuid_of("x86-64-v3"), 0xd).eax, 7U);
    EXPECT_EQ(leaf(cpuid_of("x86-64-v3"), 0xd).ecx, 832U);
    EXPECT_EQ(leaf(cpuid_of("x86-64-v4"), 0xd).eax, 0xe7U);
    EXPECT_EQ(leaf(cpuid_of("x86-64-v2"), 0xd).eax, 0U);
}

TEST(CpuModel, OfALevelTakesMoreAndLess) {
    EXPECT_TRUE(has(cpuid_of("x86-64-v2,+aes,+pdpe1gb"), "aes"));
    EXPECT_TRUE(has(cpuid_of("x86-64-v2,+avx2"), "avx")) << "what it needs comes with it";
    EXPECT_TRUE(has(cpuid_of("x86-64-v2,+avx2"), "xsave"));
    const Cpuid less = cpuid_of("x86-64-v3,-avx2,-x2apic");
    EXPECT_FALSE(has(less, "avx2"));
    EXPECT_TRUE(has(less, "avx"));
    EXPECT_FALSE(has(less, "x2apic"));
}

TEST(CpuModel, DoesTheSameTwice) {
    for (const char* const text : {"host", "host,-avx512f", "x86-64-v2", "x86-64-v3,-avx2"}) {
        const CpuModel model = CpuModel::parse(text, false);
        const Cpuid once = model.applied_to(full_host());
        const Cpuid twice = model.applied_to(once);
        ASSERT_EQ(once.size(), twice.size());
        for (std::size_t i = 0; i < once.size(); ++i) {
            EXPECT_TRUE(once[i].eax == twice[i].eax && once[i].ebx == twice[i].ebx && once[i].ecx == twice[i].ecx &&
                        once[i].edx == twice[i].edx)
                << text << std::hex << once[i].function;
        }
    }
}

TEST(CpuModel, RefusesAFeatureThatTheHostLacks) {
    Cpuid host = full_host();
    leaf(host, 7).ebx &= ~(1U << 16);
    const auto refused = [&](const char* text) {
        return error_of([&] { CpuModel::parse(text, false).check_offered(host); });
    };
    EXPECT_EQ(refused("host"), "");
    EXPECT_EQ(refused("x86-64-v3"), "");
    EXPECT_TRUE(mentions(refused("x86-64-v4"), "avx512f")) << refused("x86-64-v4");
    EXPECT_EQ(refused("x86-64-v4,-avx512f"), "") << "what is taken away is not needed";
    EXPECT_TRUE(mentions(refused("host,+avx512f"), "does not offer avx512f")) << refused("host,+avx512f");
    EXPECT_TRUE(mentions(refused("host,+avx512vl"), "avx512f")) << "what it needs is missing";
}

TEST(CpuModel, RefusesAnUnknownNameAndNamesTheNearest) {
    const struct {
        const char* text;
        const char* meant;
    } mistakes[] = {{"host,-avx51f", "avx512f"},
                    {"host,-sse4.2", "sse4_2"},
                    {"host,-sse3", "pni"},
                    {"host,-lzcnt", "abm"},
                    {"host,-x2apci", "x2apic"},
                    {"host,-tsc-deadline", "tsc_deadline_timer"},
                    {"host,+avx512-bf16", "avx512_bf16"}};
    for (const auto& [text, meant] : mistakes) {
        const std::string why = refusal(text);
        EXPECT_TRUE(mentions(why, "did you mean")) << text << ": " << why;
        EXPECT_TRUE(mentions(why, meant)) << text << ": " << why;
    }
    for (const char* const base : {"hots", "x86-64-v5", "qemu64"}) {
        EXPECT_TRUE(mentions(refusal(base), "it is host, x86-64,")) << refusal(base);
    }
    EXPECT_TRUE(mentions(refusal("host,-nosuchthingatall"), "no feature 'nosuchthingatall'"));
    EXPECT_FALSE(mentions(refusal("host,-nosuchthingatall"), "did you mean"));
}

TEST(CpuModel, RefusesWhatContradictsItself) {
    EXPECT_TRUE(mentions(refusal("host,+aes,-aes"), "both asked for and taken away"));
    EXPECT_TRUE(mentions(refusal("host,-avx,+avx2"), "avx2 needs avx, which is taken away"));
    EXPECT_TRUE(mentions(refusal("host,+fma,-xsave"), "fma needs xsave"));
    EXPECT_TRUE(mentions(refusal("host,avx"), "+avx or -avx"));
    EXPECT_TRUE(mentions(refusal("host,avx=off"), "neither + nor -"));
    for (const char* const feature : {"lm", "apic", "msr", "pae", "fpu"}) {
        EXPECT_TRUE(mentions(refusal("host,-" + std::string(feature)), "no guest can do without")) << feature;
    }
    for (const char* const text : {"", ",", "host,", "host,,-avx", "host,-", "-avx", "+avx"}) {
        EXPECT_NE(refusal(text), "") << "'" << text << "'";
    }
    EXPECT_NE(refusal("host," + std::string(1 << 20, 'x')), "");
}

TEST(CpuModel, TakesNamesInAnyCase) {
    EXPECT_FALSE(has(cpuid_of("Host,-AVX2"), "avx2"));
}

// There is one name for each meaning, and the needed features are known.
TEST(CpuFeatures, AreConsistent) {
    for (const CpuFeatureBit& feature : cpu_feature_bits()) {
        EXPECT_LT(feature.bit, 32U) << feature.name;
    }
    const auto names = cpu_feature_names();
    for (const auto& [feature, needs] : cpu_feature_needs()) {
        EXPECT_TRUE(std::ranges::binary_search(names, feature)) << feature;
        EXPECT_TRUE(std::ranges::binary_search(names, needs)) << needs;
    }
    for (const CpuStateComponent& component : cpu_state_components()) {
        EXPECT_TRUE(std::ranges::binary_search(names, component.feature)) << component.feature;
    }
    for (const CpuFeatureLeaf& each : cpu_feature_leaves()) {
        EXPECT_TRUE(std::ranges::binary_search(names, each.feature)) << each.feature;
    }
}

} // namespace
} // namespace vmm
