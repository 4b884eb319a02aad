// /dev/kvm itself: what KVM on this host can do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kvm/host/unique_fd.hpp"
#include "kvm/uapi.hpp"

namespace vmm::kvm {

/// The KVM device. Threads: any thread may call every member.
class System {
  public:
    static constexpr const char* kDefaultPath = "/dev/kvm";

    /// Opens `path` and checks that it speaks API version 12, the only one there is. Throws Error, which says what to
    /// do, if the device is missing, not permitted, or not KVM.
    explicit System(const std::string& path = kDefaultPath);

    /// KVM_CHECK_EXTENSION: 0 if the capability is absent, else 1 or the capability's own number.
    [[nodiscard]] int extension(int capability) const noexcept;

    /// The most vCPUs a VM can have, and the highest vCPU id plus one.
    [[nodiscard]] unsigned max_vcpus() const noexcept;
    [[nodiscard]] unsigned max_vcpu_ids() const noexcept;

    /// The size of the area shared with each vCPU, in bytes.
    [[nodiscard]] std::size_t vcpu_mmap_bytes() const;

    // The members below exist on an x86 host only: kvm/x86/system.cpp.

    /// KVM_GET_SUPPORTED_CPUID: the CPUID entries that a guest may be given.
    [[nodiscard]] std::vector<kvm_cpuid_entry2> supported_cpuid() const;

    /// KVM_X86_GET_MCE_CAP_SUPPORTED: the bits of MCG_CAP that Vcpu::set_up_machine_checks() accepts, with the number
    /// of banks (KVM_CAP_MCE) in the low byte. It is 0 if there are no banks.
    [[nodiscard]] std::uint64_t machine_check_capabilities() const noexcept;

    /// The descriptor, on loan.
    [[nodiscard]] int fd() const noexcept { return fd_.get(); }

  private:
    UniqueFd fd_;
};

} // namespace vmm::kvm
