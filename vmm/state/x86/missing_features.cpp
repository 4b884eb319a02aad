#include "vmm/state/x86/missing_features.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kvm/host/format.hpp"
#include "vmm/machine/x86/cpu_features.hpp"

namespace vmm {

namespace {

/// A bit of CPUID that is no feature of the processor.
struct OtherBit {
    std::uint32_t function;
    std::uint32_t kvm_cpuid_entry2::*register_;
    unsigned bit;
};

// KVM changes the bits of the first group when the guest writes to its registers (kvm_update_cpuid_runtime()). The bits
// of the second group tell that there are several vCPUs, and that they are virtual.
constexpr std::array kOtherBits{
    OtherBit{0x1, &kvm_cpuid_entry2::ecx, 27},       // OSXSAVE
    OtherBit{0x1, &kvm_cpuid_entry2::ecx, 3},        // MONITOR
    OtherBit{0x1, &kvm_cpuid_entry2::edx, 9},        // APIC
    OtherBit{0x80000001, &kvm_cpuid_entry2::edx, 9}, // the same
    OtherBit{0x7, &kvm_cpuid_entry2::ecx, 4},        // OSPKE
    OtherBit{0x1, &kvm_cpuid_entry2::edx, 28},       // HTT
    OtherBit{0x80000001, &kvm_cpuid_entry2::ecx, 1}, // CmpLegacy
    OtherBit{0x1, &kvm_cpuid_entry2::ecx, 31},       // hypervisor
};

std::uint32_t mask_of(const CpuidWord& word) {
    std::uint32_t mask = UINT32_MAX;
    for (const OtherBit& other : kOtherBits) {
        if (other.function == word.function && other.register_ == word.register_) {
            mask &= ~(1U << other.bit);
        }
    }
    return mask;
}

std::uint32_t value_of(std::span<const kvm_cpuid_entry2> cpuid, const CpuidWord& word) {
    for (const kvm_cpuid_entry2& entry : cpuid) {
        if (entry.function == word.function && entry.index == word.index) {
            return entry.*word.register_;
        }
    }
    return 0;
}

/// Every register with feature bits, once, in the order of the leaves.
std::vector<CpuidWord> feature_words() {
    std::vector<CpuidWord> words;
    for (const CpuFeatureBit& feature : cpu_feature_bits()) {
        if (std::ranges::find(words, feature.word) == words.end()) {
            words.push_back(feature.word);
        }
    }
    std::ranges::stable_sort(words, [](const CpuidWord& a, const CpuidWord& b) {
        return a.function != b.function ? a.function < b.function : a.index < b.index;
    });
    return words;
}

std::string_view name_of_register(std::uint32_t kvm_cpuid_entry2::*register_) {
    if (register_ == &kvm_cpuid_entry2::eax) {
        return "EAX";
    }
    if (register_ == &kvm_cpuid_entry2::ebx) {
        return "EBX";
    }
    return register_ == &kvm_cpuid_entry2::ecx ? "ECX" : "EDX";
}

std::string describe(const CpuidWord& word, unsigned bit) {
    const std::span<const CpuFeatureBit> bits = cpu_feature_bits();
    const auto found = std::ranges::find_if(
        bits, [&](const CpuFeatureBit& feature) { return feature.word == word && feature.bit == bit; });
    const std::string index = word.index == 0 ? "" : format(" index {}", word.index);
    return format("{} (leaf {:#x}{}, {} bit {})", found != bits.end() ? found->name : "a feature without a name",
                  word.function, index, name_of_register(word.register_), bit);
}

} // namespace

std::vector<std::string> missing_features(std::span<const kvm_cpuid_entry2> saved,
                                          std::span<const kvm_cpuid_entry2> offered) {
    std::vector<std::string> missing;
    for (const CpuidWord& word : feature_words()) {
        const std::uint32_t lost = value_of(saved, word) & ~value_of(offered, word) & mask_of(word);
        for (unsigned bit = 0; bit < 32; ++bit) {
            if ((lost >> bit & 1U) != 0) {
                missing.push_back(describe(word, bit));
            }
        }
    }
    return missing;
}

std::string describe_missing_features(std::span<const std::string> missing) {
    constexpr std::size_t kMostNamed = 8;
    const std::size_t named = std::min(missing.size(), kMostNamed);
    std::string text;
    for (std::size_t i = 0; i < named; ++i) {
        const bool is_last = i + 1 == missing.size();
        text += (i == 0 ? "" : is_last ? " and " : ", ") + missing[i];
    }
    if (missing.size() > named) {
        text += format(" and {} more", missing.size() - named);
    }
    return text;
}

} // namespace vmm
