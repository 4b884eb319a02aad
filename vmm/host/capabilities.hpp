// What a host must offer so that a guest can run.
#pragma once

#include <array>

#include "kvm/system.hpp"
#include "kvm/uapi.hpp"
#include "vmm/config.hpp"

namespace vmm {

struct HostCapability {
    int number;
    const char* name; ///< for people
    bool needed;      ///< whether no guest can run without it
};

/// The capabilities that a machine checks before it creates anything, and that the doctor shows.
inline constexpr std::array kHostCapabilities{
    HostCapability{KVM_CAP_USER_MEMORY, "guest memory from user space (KVM_CAP_USER_MEMORY)", true},
    HostCapability{KVM_CAP_IRQCHIP, "in-kernel interrupt controllers (KVM_CAP_IRQCHIP)", true},
    HostCapability{KVM_CAP_PIT2, "in-kernel timer (KVM_CAP_PIT2)", true},
    HostCapability{KVM_CAP_IRQFD, "interrupts by eventfd (KVM_CAP_IRQFD)", true},
    HostCapability{KVM_CAP_MP_STATE, "vCPU states (KVM_CAP_MP_STATE)", true},
    HostCapability{KVM_CAP_EXT_CPUID, "CPUID of the guest's own (KVM_CAP_EXT_CPUID)", true},
    HostCapability{KVM_CAP_BINARY_STATS_FD, "statistics, since Linux 5.14 (KVM_CAP_BINARY_STATS_FD)", true},
    HostCapability{KVM_CAP_IOEVENTFD, "doorbells by eventfd (KVM_CAP_IOEVENTFD)", true},
    HostCapability{KVM_CAP_TSC_DEADLINE_TIMER, "TSC deadline timer (KVM_CAP_TSC_DEADLINE_TIMER)", false},
    HostCapability{KVM_CAP_PRE_FAULT_MEMORY, "prefault by the kernel (KVM_CAP_PRE_FAULT_MEMORY)", false}};

/// The number of prefault vCPUs of a machine of this configuration: the number that is asked for, if there is work for
/// them.
[[nodiscard]] unsigned prefault_vcpus(const Config& config);

/// Throws Error if `system` cannot run what `config` asks for: capabilities, addresses, vCPUs. It creates nothing.
void check_host(const kvm::System& system, const Config& config);

} // namespace vmm
