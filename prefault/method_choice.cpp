#include "prefault/method_choice.hpp"

#include "kvm/host/error.hpp"

namespace vmm::prefault {

MethodChoice choose_method(Method wanted, const SecondLevelHost& host, bool has_pre_fault_memory) {
    const bool shadow = host.kind == SecondLevelKind::kShadow;
    const std::string why_not = shadow                 ? "shadow paging: KVM_PRE_FAULT_MEMORY needs EPT or NPT"
                                : has_pre_fault_memory ? ""
                                : host.may_be_shadow()
                                    ? "this KVM has no KVM_PRE_FAULT_MEMORY (Linux 6.11, and EPT or NPT)"
                                    : "this KVM has no KVM_PRE_FAULT_MEMORY (Linux 6.11)";
    switch (wanted) {
    case Method::kTouch:
        return {Method::kTouch, "asked for"};
    case Method::kIoctl:
    case Method::kIoctlThenTouch:
        if (!why_not.empty()) {
            throw Error("cannot prefault by ioctl: " + why_not + " (take Config::prefault.method=auto or touch)");
        }
        return {wanted, "asked for"};
    case Method::kAuto:
    case Method::kNone:
        break;
    }
    if (!why_not.empty()) {
        return {Method::kTouch, why_not};
    }
    if (host.nested && host.accessed_dirty.value_or(true)) {
        return {Method::kIoctlThenTouch,
                "this host is itself a guest (CPUID has the hypervisor bit): KVM_PRE_FAULT_MEMORY fills this host's "
                "table, and the touches have its own host fill the one that it keeps for guests of this host"};
    }
    if (!host.accessed_dirty) {
        return {Method::kIoctl,
                "this KVM has KVM_PRE_FAULT_MEMORY; whether the host keeps Accessed and Dirty bits is not "
                "known, so every page is touched afterwards"};
    }
    if (!*host.accessed_dirty) {
        return {Method::kTouch, "this host keeps no Accessed and Dirty bits in the second level (eptad=N): what "
                                "KVM_PRE_FAULT_MEMORY maps would fault at its first access"};
    }
    return {Method::kIoctl, "this KVM has KVM_PRE_FAULT_MEMORY, and the host keeps Accessed and Dirty bits"};
}

} // namespace vmm::prefault
