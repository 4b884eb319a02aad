// The state of an x86 vCPU as a value.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kvm/system.hpp"
#include "kvm/uapi.hpp"
#include "kvm/vcpu.hpp"

namespace vmm::kvm {

/// A model-specific register and its value.
struct Msr {
    std::uint32_t index = 0;
    std::uint64_t value = 0;

    friend bool operator==(const Msr&, const Msr&) = default;
};

/// The whole state that KVM keeps of a vCPU, in KVM's own form. It may come from an untrusted source: restore_vcpu()
/// bounds what it copies, and KVM checks the rest.
struct VcpuState {
    std::uint32_t mp_state = 0; ///< KVM_MP_STATE_*
    kvm_regs registers{};
    kvm_sregs2 special{};         ///< filled even if KVM has KVM_GET_SREGS only
    std::vector<std::byte> xsave; ///< of KVM_GET_XSAVE2: 4096 bytes or more
    kvm_xcrs xcrs{};
    kvm_debugregs debug{};
    kvm_lapic_state local_apic{};
    std::uint32_t tsc_khz = 0;   ///< 0: KVM does not say
    std::int64_t tsc_offset = 0; ///< distance to the host's counter; only the difference between vCPUs matters
    std::vector<kvm_cpuid_entry2> cpuid;
    std::vector<Msr> msrs;         ///< each register once; the time stamp counter comes last
    std::vector<std::byte> nested; ///< of KVM_GET_NESTED_STATE; empty if this KVM has none
    kvm_vcpu_events events{};
};

/// The indexes of the registers that make up the state of a vCPU: those that KVM lists for this host, and those that it
/// has but does not list (memory types, banks of machine checks, paravirtual ones). A vCPU need not have all of them.
/// Throws Error.
[[nodiscard]] std::vector<std::uint32_t> saved_msr_indexes(const System& system);

/// The CPUID that KVM shows to the guest of `vcpu`: the entries it was given, with those that this KVM cannot hide.
/// Throws Error.
[[nodiscard]] std::vector<kvm_cpuid_entry2> cpuid_of(const Vcpu& vcpu);

/// The state of `vcpu`, which must not be running or have an exit to finish (Vcpu::finish_exit()). `indexes` are those
/// of saved_msr_indexes(). Throws Error.
[[nodiscard]] VcpuState save_vcpu(const Vcpu& vcpu, const std::vector<std::uint32_t>& indexes);

/// Puts `vcpu` into `state`, and sets its CPUID, too. `vcpu` must not have run, and KVM must have its local APIC.
/// Returns a line for each register that KVM refused and that a guest can do without. Throws Error if KVM refuses
/// `state`.
///
/// The clock comes afterwards: restore_tsc() of all vCPUs, and restore_clock() of the VM.
[[nodiscard]] std::vector<std::string> restore_vcpu(Vcpu& vcpu, const VcpuState& state);

/// Lets the time stamp counters of all `vcpus` go on from `states` (one for each), `later` ticks later. All counters
/// get the same distance to the host's counter, and keep the distances that they had among each other. Does nothing if
/// KVM cannot move the counter. Throws Error.
void restore_tsc(const std::vector<Vcpu*>& vcpus, const std::vector<VcpuState>& states, std::uint64_t later);

/// Tells the guest's clock that it was paused, so that the guest's watchdogs do not fire (api.rst, 4.73,
/// KVM_KVMCLOCK_CTRL). Does nothing if the guest has no such clock.
void note_paused(const Vcpu& vcpu) noexcept;

} // namespace vmm::kvm
