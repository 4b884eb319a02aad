// The members of Vcpu that only an x86 vCPU has.
#include <sys/ioctl.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/vcpu.hpp"

namespace vmm::kvm {

namespace {

struct OneMsr {
    std::uint32_t count;
    std::uint32_t padding;
    kvm_msr_entry entry;
};
static_assert(sizeof(OneMsr) == sizeof(kvm_msrs) + sizeof(kvm_msr_entry));

} // namespace

kvm_regs Vcpu::registers() const {
    kvm_regs registers{};
    if (::ioctl(fd_.get(), KVM_GET_REGS, &registers) != 0) {
        throw_errno(errno, "read the registers of " + name());
    }
    return registers;
}

void Vcpu::set_registers(const kvm_regs& registers) {
    if (::ioctl(fd_.get(), KVM_SET_REGS, &registers) != 0) {
        throw_errno(errno, "set the registers of " + name());
    }
}

kvm_sregs Vcpu::special_registers() const {
    kvm_sregs registers{};
    if (::ioctl(fd_.get(), KVM_GET_SREGS, &registers) != 0) {
        throw_errno(errno, "read the special registers of " + name());
    }
    return registers;
}

void Vcpu::set_special_registers(const kvm_sregs& registers) {
    if (::ioctl(fd_.get(), KVM_SET_SREGS, &registers) != 0) {
        throw_errno(errno, "set the special registers of " + name());
    }
}

std::optional<std::uint64_t> Vcpu::msr(std::uint32_t index) const {
    OneMsr request{};
    request.count = 1;
    request.entry.index = index;
    const int count = ::ioctl(fd_.get(), KVM_GET_MSRS, &request);
    if (count < 0) {
        throw_errno(errno, vmm::format("read MSR {:#x} of vCPU {}", index, id_));
    }
    return count == 1 ? std::optional(request.entry.data) : std::nullopt;
}

bool Vcpu::set_msr(std::uint32_t index, std::uint64_t value) {
    OneMsr request{};
    request.count = 1;
    request.entry.index = index;
    request.entry.data = value;
    const int count = ::ioctl(fd_.get(), KVM_SET_MSRS, &request);
    if (count < 0) {
        throw_errno(errno, vmm::format("set MSR {:#x} of vCPU {}", index, id_));
    }
    return count == 1;
}

void Vcpu::set_cpuid(std::span<const kvm_cpuid_entry2> entries) {
    std::vector<std::byte> raw(sizeof(kvm_cpuid2) + entries.size_bytes());
    const auto count = static_cast<std::uint32_t>(entries.size());
    std::memcpy(raw.data(), &count, sizeof count); // kvm_cpuid2::nent is the first member.
    std::memcpy(raw.data() + sizeof(kvm_cpuid2), entries.data(), entries.size_bytes());
    if (::ioctl(fd_.get(), KVM_SET_CPUID2, raw.data()) != 0) {
        throw_errno(errno, "set the CPUID of " + name());
    }
}

void Vcpu::set_up_machine_checks(std::uint64_t mcg_cap) {
    if (::ioctl(fd_.get(), KVM_X86_SETUP_MCE, &mcg_cap) != 0) {
        throw_errno(errno, vmm::format("give {} machine-check banks (MCG_CAP {:#x})", name(), mcg_cap));
    }
}

kvm_lapic_state Vcpu::local_apic() const {
    kvm_lapic_state registers{};
    if (::ioctl(fd_.get(), KVM_GET_LAPIC, &registers) != 0) {
        throw_errno(errno, "read the local APIC of " + name());
    }
    return registers;
}

void Vcpu::set_local_apic(const kvm_lapic_state& registers) {
    if (::ioctl(fd_.get(), KVM_SET_LAPIC, &registers) != 0) {
        throw_errno(errno, "set the local APIC of " + name());
    }
}

void Vcpu::set_system_management_mode(bool on) {
    kvm_vcpu_events events{};
    if (::ioctl(fd_.get(), KVM_GET_VCPU_EVENTS, &events) != 0) {
        throw_errno(errno, "read the pending events of " + name());
    }
    events.flags = KVM_VCPUEVENT_VALID_SMM;
    events.smi.smm = on ? 1 : 0;
    if (::ioctl(fd_.get(), KVM_SET_VCPU_EVENTS, &events) != 0) {
        throw_errno(errno, "put " + name() + " into system management mode");
    }
}

void Vcpu::forget_events() {
    kvm_vcpu_events none{};
    none.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
    if (::ioctl(fd_.get(), KVM_SET_VCPU_EVENTS, &none) != 0) {
        throw_errno(errno, "take back the pending events of " + name());
    }
}

} // namespace vmm::kvm
