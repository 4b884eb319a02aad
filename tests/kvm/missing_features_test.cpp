// A saved vCPU can go on in another vCPU of the same host: no feature is missing there.

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kvm/x86/saved_vcpu.hpp"
#include "support/kvm_guest.hpp"
#include "support/kvm_require.hpp"
#include "vmm/machine/x86/cpu_model.hpp"
#include "vmm/machine/x86/cpuid.hpp"
#include "vmm/state/x86/missing_features.hpp"

namespace vmm {
namespace {

using MissingFeaturesHere = testing::KvmTest;

/// The CPUID, as KVM returns it, of a vCPU that was given the features that `model` takes from this host.
std::vector<kvm_cpuid_entry2> cpuid_of(const std::string& model) {
    testing::SmallVm vm(testing::SmallVm::Interrupts::kInKernel);
    kvm::Vcpu vcpu = vm.vcpu_with({0xf4});
    vcpu.set_cpuid(CpuModel::parse(model, false).applied_to(guest_cpuid(vm.system.supported_cpuid(), 2, 0, true)));
    return kvm::save_vcpu(vcpu, {}).cpuid;
}

TEST_F(MissingFeaturesHere, AreNoneOnTheSameHost) {
    const auto saved = cpuid_of("host");
    EXPECT_EQ(missing_features(saved, cpuid_of("host")), std::vector<std::string>{});
    EXPECT_EQ(missing_features(cpuid_of("x86-64-v2"), saved), std::vector<std::string>{});
}

TEST_F(MissingFeaturesHere, AreNamedWhereThereIsNoProcessor) {
    EXPECT_NE(describe_missing_features(missing_features(cpuid_of("host"), {})), "");
}

} // namespace
} // namespace vmm
