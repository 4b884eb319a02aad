// Features of a processor that a guest uses and that another processor does not have.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "kvm/uapi.hpp"

namespace vmm {

/// Returns the features that `saved`, the CPUID of a vCPU, offers to the guest and `offered` does not, each as "avx512f
/// (leaf 0x7, EBX bit 16)", in the order of the leaves. A guest that uses one of them cannot go on here. Bits that the
/// guest itself switches on and off in its CPUID do not count.
///
/// Both must be what KVM reports for a vCPU (kvm::VcpuState::cpuid): `saved` for the old vCPU, `offered` for a new one
/// on this host. A KVM that cannot hide a feature adds it to the CPUID that a vCPU is given.
[[nodiscard]] std::vector<std::string> missing_features(std::span<const kvm_cpuid_entry2> saved,
                                                        std::span<const kvm_cpuid_entry2> offered);

/// Returns the same as one line, for messages: "avx512f (leaf 0x7, EBX bit 16), avx512dq (leaf 0x7, EBX bit 17) and 12
/// more"; empty if nothing is missing.
[[nodiscard]] std::string describe_missing_features(std::span<const std::string> missing);

} // namespace vmm
