// How this host translates guest-physical addresses, and how we find that out.
#pragma once

#include <optional>
#include <string_view>

#include "kvm/host/export.hpp"

namespace vmm::kvm {
class Vm;
} // namespace vmm::kvm

VMM_API_BEGIN
namespace vmm::prefault {

/// How KVM translates guest-physical addresses on this host.
enum class SecondLevelKind {
    kNpt,     ///< AMD nested paging
    kEpt,     ///< Intel extended page tables
    kShadow,  ///< no second level in hardware: KVM shadows the guest's own page tables
    kUnknown, ///< neither KVM nor its module parameters say
};

/// The name used in the report: "npt", "ept", "shadow", "unknown".
[[nodiscard]] std::string_view to_string(SecondLevelKind kind) noexcept;

/// What is known about the second level on this host. A value.
struct SecondLevelHost {
    SecondLevelKind kind = SecondLevelKind::kUnknown;
    std::optional<bool> tdp_mmu; ///< KVM's parallel page fault handler (Linux 5.10 and later); nothing: not known
    /// Whether the processor keeps Accessed and Dirty bits in the second level; nothing: not known. Without these bits,
    /// a mapping that was not made by an access faults at its first access (arch/x86/kvm/mmu/spte.c, make_spte:
    /// prefetched entries are access-tracked).
    std::optional<bool> accessed_dirty;
    /// Whether this host is itself a guest (host_is_guest()). If so, its own host keeps one more table for the guests
    /// of this host, which neither this host's KVM nor its counts know of.
    bool nested = false;

    /// True if KVM shadows the guest's own page tables, or if it may do so as far as is known.
    [[nodiscard]] bool may_be_shadow() const noexcept {
        return kind == SecondLevelKind::kShadow || kind == SecondLevelKind::kUnknown;
    }
};

/// Answers of KVM_CHECK_EXTENSION that depend on nested paging, and the vendor of the processor. Linux 5.14 and later.
struct PagingAnswers {
    bool pre_fault_memory = false;   ///< KVM_CAP_PRE_FAULT_MEMORY
    bool apic_bus_cycles = false;    ///< KVM_CAP_X86_APIC_BUS_CYCLES_NS
    bool smaller_maxphyaddr = false; ///< KVM_CAP_SMALLER_MAXPHYADDR
    bool is_amd = false;             ///< AMD or Hygon; else Intel, or one that is like it
    bool is_guest = false;           ///< as host_is_guest()
};

/// True if the processor reports that it is a virtual one: the hypervisor bit of CPUID (leaf 1, ECX bit 31), which no
/// real processor sets (AMD64 volume 3, E.3.2; Linux: X86_FEATURE_HYPERVISOR).
[[nodiscard]] bool host_is_guest() noexcept;

/// The kind that follows from these answers without doubt; otherwise kUnknown. Their meaning comes from arch/x86/kvm
/// (x86.c, svm/svm.c, vmx/vmx.c): KVM_CAP_PRE_FAULT_MEMORY is true only with nested paging, in every kernel that has
/// it, and KVM_CAP_X86_APIC_BUS_CYCLES_NS came with it. KVM_CAP_SMALLER_MAXPHYADDR is the opposite of nested paging,
/// but on Intel a module parameter can ask for it, too.
[[nodiscard]] SecondLevelKind second_level_kind(const PagingAnswers& answers) noexcept;

/// What KVM's module parameters below `sysfs_module` say. A parameter that cannot be read is not known, rather than
/// absent.
[[nodiscard]] SecondLevelHost detect_second_level(std::string_view sysfs_module, bool is_guest = host_is_guest());

/// As above, but with KVM's own answers, which need no sysfs: containers have none, or one without /sys/module. If the
/// two differ, KVM is right.
[[nodiscard]] SecondLevelHost detect_second_level(const PagingAnswers& answers,
                                                  std::string_view sysfs_module = "/sys/module");

/// As above, with the answers of /dev/kvm. If it cannot be opened, only the module parameters are used. Throws nothing.
[[nodiscard]] SecondLevelHost detect_second_level();

/// As above, with the answers of a VM.
[[nodiscard]] SecondLevelHost detect_second_level(const kvm::Vm& vm);

} // namespace vmm::prefault
VMM_API_END
