// What a guest uses of a processor and another processor does not have.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "kvm/uapi.hpp"

namespace vmm {

/// The features that `saved`, the CPUID of a vCPU, offers to the guest, and `offered` does not: each as "avx512f (leaf
/// 0x7, EBX bit 16)", in the order of the leaves. A guest that uses one of them cannot go on here. What the guest
/// itself switches on and off in its CPUID does not count.
///
/// `offered` is what KVM says of a new vCPU of this host, as `saved` is of the old one (kvm::VcpuState::cpuid): a KVM
/// that cannot hide a feature adds it to what a vCPU is given.
[[nodiscard]] std::vector<std::string> missing_features(std::span<const kvm_cpuid_entry2> saved,
                                                        std::span<const kvm_cpuid_entry2> offered);

/// The same as one line, for messages: "avx512f (leaf 0x7, EBX bit 16), avx512dq (leaf 0x7, EBX bit 17) and 12 more";
/// empty if nothing is missing.
[[nodiscard]] std::string describe_missing_features(std::span<const std::string> missing);

} // namespace vmm
