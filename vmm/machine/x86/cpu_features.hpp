// The features of x86 processors: their names, their bits, and what needs what.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "kvm/uapi.hpp"

namespace vmm {

/// One register of one CPUID leaf. Each of its bits says whether a feature is there.
struct CpuidWord {
    std::uint32_t function;
    std::uint32_t index;
    std::uint32_t kvm_cpuid_entry2::*register_;

    friend constexpr bool operator==(const CpuidWord&, const CpuidWord&) = default;
};

/// A bit that says that a feature is there. A feature has several bits if two vendors, or two leaves, report it in
/// different ways; it is there if any of them is set.
struct CpuFeatureBit {
    std::string_view name; ///< as Linux writes it in /proc/cpuinfo
    CpuidWord word;
    unsigned bit;
};

[[nodiscard]] std::span<const CpuFeatureBit> cpu_feature_bits();

/// `feature` cannot be used without `needs`.
struct CpuFeatureNeed {
    std::string_view feature;
    std::string_view needs;
};

[[nodiscard]] std::span<const CpuFeatureNeed> cpu_feature_needs();

/// A part of the processor's state that XSAVE keeps: its bit in XCR0 (or IA32_XSS), and the feature to which it belongs
/// (Intel SDM volume 1, 13.1). It is there if any feature that names it is there.
struct CpuStateComponent {
    unsigned bit;
    std::string_view feature;
};

[[nodiscard]] std::span<const CpuStateComponent> cpu_state_components();

/// A leaf that describes one feature and is all zeros without it.
struct CpuFeatureLeaf {
    std::uint32_t function;
    std::string_view feature;
};

[[nodiscard]] std::span<const CpuFeatureLeaf> cpu_feature_leaves();

} // namespace vmm
