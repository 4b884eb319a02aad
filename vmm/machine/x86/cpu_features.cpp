#include "vmm/machine/x86/cpu_features.hpp"

#include <array>

namespace vmm {

namespace {

using Leaf = kvm_cpuid_entry2;

// Intel SDM volume 2, CPUID; AMD64 volume 3, appendix E. The names are Linux's (arch/x86/include/asm/cpufeatures.h).
// If the processor has PKU, the operating system switches OSPKE on. If one of them is taken away, so is the other.
// clang-format off
constexpr CpuidWord kLeaf1Edx{0x1, 0, &Leaf::edx};
constexpr CpuidWord kLeaf1Ecx{0x1, 0, &Leaf::ecx};
constexpr CpuidWord kLeaf6Eax{0x6, 0, &Leaf::eax};
constexpr CpuidWord kLeaf7Index0Ebx{0x7, 0, &Leaf::ebx};
constexpr CpuidWord kLeaf7Index0Ecx{0x7, 0, &Leaf::ecx};
constexpr CpuidWord kLeaf7Index0Edx{0x7, 0, &Leaf::edx};
constexpr CpuidWord kLeaf7Index1Eax{0x7, 1, &Leaf::eax};
constexpr CpuidWord kLeaf7Index1Edx{0x7, 1, &Leaf::edx};
constexpr CpuidWord kLeaf7Index2Edx{0x7, 2, &Leaf::edx};
constexpr CpuidWord kLeafdIndex1Eax{0xd, 1, &Leaf::eax};
constexpr CpuidWord kLeaf80000001Edx{0x80000001, 0, &Leaf::edx};
constexpr CpuidWord kLeaf80000001Ecx{0x80000001, 0, &Leaf::ecx};
constexpr CpuidWord kLeaf80000007Edx{0x80000007, 0, &Leaf::edx};
constexpr CpuidWord kLeaf80000008Ebx{0x80000008, 0, &Leaf::ebx};
constexpr CpuidWord kLeaf80000021Eax{0x80000021, 0, &Leaf::eax};

constexpr auto kBits = std::to_array<CpuFeatureBit>({
    {"fpu", kLeaf1Edx, 0}, {"vme", kLeaf1Edx, 1}, {"de", kLeaf1Edx, 2}, {"pse", kLeaf1Edx, 3}, {"tsc", kLeaf1Edx, 4},
    {"msr", kLeaf1Edx, 5}, {"pae", kLeaf1Edx, 6}, {"mce", kLeaf1Edx, 7}, {"cx8", kLeaf1Edx, 8},
    {"apic", kLeaf1Edx, 9}, {"sep", kLeaf1Edx, 11}, {"mtrr", kLeaf1Edx, 12}, {"pge", kLeaf1Edx, 13},
    {"mca", kLeaf1Edx, 14}, {"cmov", kLeaf1Edx, 15}, {"pat", kLeaf1Edx, 16}, {"pse36", kLeaf1Edx, 17},
    {"pn", kLeaf1Edx, 18}, {"clflush", kLeaf1Edx, 19}, {"dts", kLeaf1Edx, 21}, {"acpi", kLeaf1Edx, 22},
    {"mmx", kLeaf1Edx, 23}, {"fxsr", kLeaf1Edx, 24}, {"sse", kLeaf1Edx, 25}, {"sse2", kLeaf1Edx, 26},
    {"ss", kLeaf1Edx, 27}, {"ht", kLeaf1Edx, 28}, {"tm", kLeaf1Edx, 29}, {"ia64", kLeaf1Edx, 30},
    {"pbe", kLeaf1Edx, 31},
    {"pni", kLeaf1Ecx, 0}, {"pclmulqdq", kLeaf1Ecx, 1}, {"dtes64", kLeaf1Ecx, 2}, {"monitor", kLeaf1Ecx, 3},
    {"ds_cpl", kLeaf1Ecx, 4}, {"vmx", kLeaf1Ecx, 5}, {"smx", kLeaf1Ecx, 6}, {"est", kLeaf1Ecx, 7},
    {"tm2", kLeaf1Ecx, 8}, {"ssse3", kLeaf1Ecx, 9}, {"cid", kLeaf1Ecx, 10}, {"sdbg", kLeaf1Ecx, 11},
    {"fma", kLeaf1Ecx, 12}, {"cx16", kLeaf1Ecx, 13}, {"xtpr", kLeaf1Ecx, 14}, {"pdcm", kLeaf1Ecx, 15},
    {"pcid", kLeaf1Ecx, 17}, {"dca", kLeaf1Ecx, 18}, {"sse4_1", kLeaf1Ecx, 19}, {"sse4_2", kLeaf1Ecx, 20},
    {"x2apic", kLeaf1Ecx, 21}, {"movbe", kLeaf1Ecx, 22}, {"popcnt", kLeaf1Ecx, 23},
    {"tsc_deadline_timer", kLeaf1Ecx, 24}, {"aes", kLeaf1Ecx, 25}, {"xsave", kLeaf1Ecx, 26}, {"avx", kLeaf1Ecx, 28},
    {"f16c", kLeaf1Ecx, 29}, {"rdrand", kLeaf1Ecx, 30}, {"hypervisor", kLeaf1Ecx, 31},
    {"arat", kLeaf6Eax, 2},
    {"fsgsbase", kLeaf7Index0Ebx, 0}, {"tsc_adjust", kLeaf7Index0Ebx, 1}, {"sgx", kLeaf7Index0Ebx, 2},
    {"bmi1", kLeaf7Index0Ebx, 3}, {"hle", kLeaf7Index0Ebx, 4}, {"avx2", kLeaf7Index0Ebx, 5},
    {"smep", kLeaf7Index0Ebx, 7}, {"bmi2", kLeaf7Index0Ebx, 8}, {"erms", kLeaf7Index0Ebx, 9},
    {"invpcid", kLeaf7Index0Ebx, 10}, {"rtm", kLeaf7Index0Ebx, 11}, {"cqm", kLeaf7Index0Ebx, 12},
    {"mpx", kLeaf7Index0Ebx, 14}, {"rdt_a", kLeaf7Index0Ebx, 15}, {"avx512f", kLeaf7Index0Ebx, 16},
    {"avx512dq", kLeaf7Index0Ebx, 17}, {"rdseed", kLeaf7Index0Ebx, 18}, {"adx", kLeaf7Index0Ebx, 19},
    {"smap", kLeaf7Index0Ebx, 20}, {"avx512ifma", kLeaf7Index0Ebx, 21}, {"clflushopt", kLeaf7Index0Ebx, 23},
    {"clwb", kLeaf7Index0Ebx, 24}, {"intel_pt", kLeaf7Index0Ebx, 25}, {"avx512pf", kLeaf7Index0Ebx, 26},
    {"avx512er", kLeaf7Index0Ebx, 27}, {"avx512cd", kLeaf7Index0Ebx, 28}, {"sha_ni", kLeaf7Index0Ebx, 29},
    {"avx512bw", kLeaf7Index0Ebx, 30}, {"avx512vl", kLeaf7Index0Ebx, 31},
    {"avx512vbmi", kLeaf7Index0Ecx, 1}, {"umip", kLeaf7Index0Ecx, 2}, {"pku", kLeaf7Index0Ecx, 3},
    {"ospke", kLeaf7Index0Ecx, 3}, {"waitpkg", kLeaf7Index0Ecx, 5}, {"avx512_vbmi2", kLeaf7Index0Ecx, 6},
    {"user_shstk", kLeaf7Index0Ecx, 7}, {"gfni", kLeaf7Index0Ecx, 8}, {"vaes", kLeaf7Index0Ecx, 9},
    {"vpclmulqdq", kLeaf7Index0Ecx, 10}, {"avx512_vnni", kLeaf7Index0Ecx, 11}, {"avx512_bitalg", kLeaf7Index0Ecx, 12},
    {"tme", kLeaf7Index0Ecx, 13}, {"avx512_vpopcntdq", kLeaf7Index0Ecx, 14}, {"la57", kLeaf7Index0Ecx, 16},
    {"rdpid", kLeaf7Index0Ecx, 22}, {"bus_lock_detect", kLeaf7Index0Ecx, 24}, {"cldemote", kLeaf7Index0Ecx, 25},
    {"movdiri", kLeaf7Index0Ecx, 27}, {"movdir64b", kLeaf7Index0Ecx, 28}, {"enqcmd", kLeaf7Index0Ecx, 29},
    {"sgx_lc", kLeaf7Index0Ecx, 30},
    {"avx512_4vnniw", kLeaf7Index0Edx, 2}, {"avx512_4fmaps", kLeaf7Index0Edx, 3}, {"fsrm", kLeaf7Index0Edx, 4},
    {"avx512_vp2intersect", kLeaf7Index0Edx, 8}, {"md_clear", kLeaf7Index0Edx, 10},
    {"serialize", kLeaf7Index0Edx, 14}, {"tsxldtrk", kLeaf7Index0Edx, 16}, {"pconfig", kLeaf7Index0Edx, 18},
    {"arch_lbr", kLeaf7Index0Edx, 19}, {"ibt", kLeaf7Index0Edx, 20}, {"amx_bf16", kLeaf7Index0Edx, 22},
    {"avx512_fp16", kLeaf7Index0Edx, 23}, {"amx_tile", kLeaf7Index0Edx, 24}, {"amx_int8", kLeaf7Index0Edx, 25},
    {"ibrs", kLeaf7Index0Edx, 26}, {"stibp", kLeaf7Index0Edx, 27}, {"flush_l1d", kLeaf7Index0Edx, 28},
    {"arch_capabilities", kLeaf7Index0Edx, 29}, {"ssbd", kLeaf7Index0Edx, 31},
    {"sha512", kLeaf7Index1Eax, 0}, {"sm3", kLeaf7Index1Eax, 1}, {"sm4", kLeaf7Index1Eax, 2},
    {"avx_vnni", kLeaf7Index1Eax, 4}, {"avx512_bf16", kLeaf7Index1Eax, 5}, {"lass", kLeaf7Index1Eax, 6},
    {"cmpccxadd", kLeaf7Index1Eax, 7}, {"fzrm", kLeaf7Index1Eax, 10}, {"fsrs", kLeaf7Index1Eax, 11},
    {"fsrc", kLeaf7Index1Eax, 12}, {"fred", kLeaf7Index1Eax, 17}, {"lkgs", kLeaf7Index1Eax, 18},
    {"wrmsrns", kLeaf7Index1Eax, 19}, {"amx_fp16", kLeaf7Index1Eax, 21}, {"hreset", kLeaf7Index1Eax, 22},
    {"avx_ifma", kLeaf7Index1Eax, 23}, {"lam", kLeaf7Index1Eax, 26},
    {"avx_vnni_int8", kLeaf7Index1Edx, 4}, {"avx_ne_convert", kLeaf7Index1Edx, 5},
    {"amx_complex", kLeaf7Index1Edx, 8}, {"avx_vnni_int16", kLeaf7Index1Edx, 10},
    {"prefetchiti", kLeaf7Index1Edx, 14},
    {"psfd", kLeaf7Index2Edx, 0}, {"bhi_ctrl", kLeaf7Index2Edx, 4},
    {"xsaveopt", kLeafdIndex1Eax, 0}, {"xsavec", kLeafdIndex1Eax, 1}, {"xgetbv1", kLeafdIndex1Eax, 2},
    {"xsaves", kLeafdIndex1Eax, 3},
    {"fpu", kLeaf80000001Edx, 0}, {"vme", kLeaf80000001Edx, 1}, {"de", kLeaf80000001Edx, 2},
    {"pse", kLeaf80000001Edx, 3}, {"tsc", kLeaf80000001Edx, 4}, {"msr", kLeaf80000001Edx, 5},
    {"pae", kLeaf80000001Edx, 6}, {"mce", kLeaf80000001Edx, 7}, {"cx8", kLeaf80000001Edx, 8},
    {"apic", kLeaf80000001Edx, 9}, {"syscall", kLeaf80000001Edx, 11}, {"mtrr", kLeaf80000001Edx, 12},
    {"pge", kLeaf80000001Edx, 13}, {"mca", kLeaf80000001Edx, 14}, {"cmov", kLeaf80000001Edx, 15},
    {"pat", kLeaf80000001Edx, 16}, {"pse36", kLeaf80000001Edx, 17}, {"mp", kLeaf80000001Edx, 19},
    {"nx", kLeaf80000001Edx, 20}, {"mmxext", kLeaf80000001Edx, 22}, {"mmx", kLeaf80000001Edx, 23},
    {"fxsr", kLeaf80000001Edx, 24}, {"fxsr_opt", kLeaf80000001Edx, 25}, {"pdpe1gb", kLeaf80000001Edx, 26},
    {"rdtscp", kLeaf80000001Edx, 27}, {"lm", kLeaf80000001Edx, 29}, {"3dnowext", kLeaf80000001Edx, 30},
    {"3dnow", kLeaf80000001Edx, 31},
    {"lahf_lm", kLeaf80000001Ecx, 0}, {"cmp_legacy", kLeaf80000001Ecx, 1}, {"svm", kLeaf80000001Ecx, 2},
    {"extapic", kLeaf80000001Ecx, 3}, {"cr8_legacy", kLeaf80000001Ecx, 4}, {"abm", kLeaf80000001Ecx, 5},
    {"sse4a", kLeaf80000001Ecx, 6}, {"misalignsse", kLeaf80000001Ecx, 7}, {"3dnowprefetch", kLeaf80000001Ecx, 8},
    {"osvw", kLeaf80000001Ecx, 9}, {"ibs", kLeaf80000001Ecx, 10}, {"xop", kLeaf80000001Ecx, 11},
    {"skinit", kLeaf80000001Ecx, 12}, {"wdt", kLeaf80000001Ecx, 13}, {"lwp", kLeaf80000001Ecx, 15},
    {"fma4", kLeaf80000001Ecx, 16}, {"tce", kLeaf80000001Ecx, 17}, {"nodeid_msr", kLeaf80000001Ecx, 19},
    {"tbm", kLeaf80000001Ecx, 21}, {"topoext", kLeaf80000001Ecx, 22}, {"perfctr_core", kLeaf80000001Ecx, 23},
    {"perfctr_nb", kLeaf80000001Ecx, 24}, {"bpext", kLeaf80000001Ecx, 26}, {"ptsc", kLeaf80000001Ecx, 27},
    {"perfctr_llc", kLeaf80000001Ecx, 28}, {"mwaitx", kLeaf80000001Ecx, 29},
    {"nonstop_tsc", kLeaf80000007Edx, 8},
    {"clzero", kLeaf80000008Ebx, 0}, {"irperf", kLeaf80000008Ebx, 1}, {"xsaveerptr", kLeaf80000008Ebx, 2},
    {"rdpru", kLeaf80000008Ebx, 4}, {"wbnoinvd", kLeaf80000008Ebx, 9}, {"ibpb", kLeaf80000008Ebx, 12},
    {"ibrs", kLeaf80000008Ebx, 14}, {"stibp", kLeaf80000008Ebx, 15}, {"amd_ppin", kLeaf80000008Ebx, 23},
    {"ssbd", kLeaf80000008Ebx, 24}, {"virt_ssbd", kLeaf80000008Ebx, 25}, {"cppc", kLeaf80000008Ebx, 27},
    {"autoibrs", kLeaf80000021Eax, 8},
    {"ibpb", kLeaf7Index0Edx, 26},
    {"constant_tsc", kLeaf80000007Edx, 8},
});

// The first entries are from Linux's own table (arch/x86/kernel/cpu/cpuid-deps.c); the others are from the manuals.
constexpr auto kNeeds = std::to_array<CpuFeatureNeed>({
    {"xsave", "fxsr"}, {"avx", "xsave"}, {"pku", "xsave"}, {"mpx", "xsave"}, {"xsaveopt", "xsave"},
    {"xsavec", "xsave"}, {"xgetbv1", "xsave"}, {"xsaves", "xsavec"}, {"xsaves", "xgetbv1"}, {"xsaveerptr", "xsave"},
    {"lwp", "xsave"}, {"mmx", "fpu"}, {"fxsr", "fpu"}, {"cmov", "fpu"}, {"mmxext", "mmx"}, {"fxsr_opt", "fxsr"},
    {"sse", "fxsr"}, {"sse2", "sse"}, {"pni", "sse2"}, {"ssse3", "pni"}, {"sse4_1", "ssse3"}, {"sse4_2", "sse4_1"},
    {"sse4a", "pni"}, {"aes", "sse2"}, {"pclmulqdq", "sse2"}, {"gfni", "sse2"}, {"sha_ni", "sse2"},
    {"misalignsse", "sse"}, {"3dnow", "mmx"}, {"3dnowext", "3dnow"}, {"f16c", "avx"}, {"fma", "avx"}, {"vaes", "avx"},
    {"vaes", "aes"}, {"vpclmulqdq", "avx"}, {"vpclmulqdq", "pclmulqdq"}, {"avx2", "avx"}, {"fma4", "avx"},
    {"xop", "avx"}, {"sha512", "avx2"}, {"sm3", "avx"}, {"sm4", "avx2"}, {"avx_vnni", "avx2"}, {"avx_ifma", "avx2"},
    {"avx_vnni_int8", "avx2"}, {"avx_vnni_int16", "avx2"}, {"avx_ne_convert", "avx2"}, {"avx512f", "avx2"},
    {"avx512f", "fma"}, {"avx512f", "f16c"}, {"avx512ifma", "avx512f"}, {"avx512pf", "avx512f"},
    {"avx512er", "avx512f"}, {"avx512cd", "avx512f"}, {"avx512dq", "avx512f"}, {"avx512bw", "avx512f"},
    {"avx512vl", "avx512f"}, {"avx512vbmi", "avx512bw"}, {"avx512_vbmi2", "avx512bw"}, {"avx512_vnni", "avx512f"},
    {"avx512_bitalg", "avx512bw"}, {"avx512_vpopcntdq", "avx512f"}, {"avx512_4vnniw", "avx512f"},
    {"avx512_4fmaps", "avx512f"}, {"avx512_vp2intersect", "avx512f"}, {"avx512_bf16", "avx512bw"},
    {"avx512_fp16", "avx512bw"}, {"amx_tile", "xsave"}, {"amx_bf16", "amx_tile"}, {"amx_int8", "amx_tile"},
    {"amx_fp16", "amx_tile"}, {"amx_complex", "amx_tile"}, {"enqcmd", "xsaves"}, {"user_shstk", "xsaves"},
    {"ibt", "xsaves"}, {"arch_lbr", "xsaves"}, {"lm", "pae"}, {"la57", "lm"}, {"syscall", "lm"},
    {"lahf_lm", "lm"}, {"cx16", "cx8"}, {"pdpe1gb", "lm"}, {"nx", "pae"}, {"pcid", "lm"}, {"invpcid", "pcid"},
    {"lam", "lm"}, {"fred", "lkgs"}, {"pse36", "pse"}, {"x2apic", "apic"}, {"tsc_deadline_timer", "apic"},
    {"extapic", "apic"}, {"arat", "apic"}, {"mca", "mce"}, {"tsc_deadline_timer", "tsc"}, {"tsc_adjust", "tsc"},
    {"rdtscp", "tsc"}, {"nonstop_tsc", "tsc"}, {"constant_tsc", "tsc"}, {"hle", "rtm"}, {"tsxldtrk", "rtm"},
    {"sgx_lc", "sgx"}, {"skinit", "svm"}, {"amd_ppin", "msr"}, {"perfctr_nb", "perfctr_core"},
    {"perfctr_llc", "perfctr_core"},
});

constexpr auto kComponents = std::to_array<CpuStateComponent>({
    {2, "avx"}, {3, "mpx"}, {4, "mpx"}, {5, "avx512f"}, {6, "avx512f"}, {7, "avx512f"}, {8, "intel_pt"}, {9, "pku"},
    {10, "enqcmd"}, {11, "user_shstk"}, {11, "ibt"}, {12, "user_shstk"}, {12, "ibt"}, {15, "arch_lbr"},
    {17, "amx_tile"}, {18, "amx_tile"}, {62, "lwp"},
});

constexpr auto kLeaves = std::to_array<CpuFeatureLeaf>({
    {0x5, "monitor"}, {0xd, "xsave"}, {0x12, "sgx"}, {0x14, "intel_pt"}, {0x1c, "arch_lbr"}, {0x1d, "amx_tile"},
    {0x1e, "amx_tile"}, {0x8000000a, "svm"}, {0x8000001b, "ibs"}, {0x8000001c, "lwp"},
});
// clang-format on

} // namespace

std::span<const CpuFeatureBit> cpu_feature_bits() {
    return kBits;
}

std::span<const CpuFeatureNeed> cpu_feature_needs() {
    return kNeeds;
}

std::span<const CpuStateComponent> cpu_state_components() {
    return kComponents;
}

std::span<const CpuFeatureLeaf> cpu_feature_leaves() {
    return kLeaves;
}

} // namespace vmm
