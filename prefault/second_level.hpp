// The second-level page table: which kind this host has, and how much of it KVM says is filled.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "kvm/host/export.hpp"
#include "kvm/stats.hpp"

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

struct SecondLevelHost {
    SecondLevelKind kind = SecondLevelKind::kUnknown;
    std::optional<bool> tdp_mmu; ///< KVM's parallel page fault handler (Linux 5.10 and later); nothing: not known
    /// Whether the processor keeps Accessed and Dirty bits in the second level. Without them a mapping that was not
    /// made by an access faults at its first one (arch/x86/kvm/mmu/spte.c, make_spte: prefetched entries are
    /// access-tracked). Nothing: not known.
    std::optional<bool> accessed_dirty;

    /// Whether KVM shadows the guest's own page tables, or may do so for all we know.
    [[nodiscard]] bool may_be_shadow() const noexcept {
        return kind == SecondLevelKind::kShadow || kind == SecondLevelKind::kUnknown;
    }
};

/// Answers of KVM_CHECK_EXTENSION that depend on nested paging, and whose processor it is. Linux 5.14 and later.
struct PagingAnswers {
    bool pre_fault_memory = false;   ///< KVM_CAP_PRE_FAULT_MEMORY
    bool apic_bus_cycles = false;    ///< KVM_CAP_X86_APIC_BUS_CYCLES_NS
    bool smaller_maxphyaddr = false; ///< KVM_CAP_SMALLER_MAXPHYADDR
    bool is_amd = false;             ///< AMD or Hygon; else Intel, or one that is like it
};

/// The kind that these answers leave no doubt of; kUnknown if they do. What they mean stands in arch/x86/kvm (x86.c,
/// svm/svm.c, vmx/vmx.c): KVM_CAP_PRE_FAULT_MEMORY is nested paging itself, in every kernel that has it, and
/// KVM_CAP_X86_APIC_BUS_CYCLES_NS came with it; KVM_CAP_SMALLER_MAXPHYADDR is the opposite of nested paging, but on
/// Intel it can be asked for by a module parameter, too.
[[nodiscard]] SecondLevelKind second_level_kind(const PagingAnswers& answers) noexcept;

/// What KVM's module parameters below `sysfs_module` say. What cannot be read is unknown, not absent.
[[nodiscard]] SecondLevelHost detect_second_level(std::string_view sysfs_module);

/// The same with KVM's own answers, which need no sysfs: containers have none, or one without /sys/module. KVM is right
/// where the two differ.
[[nodiscard]] SecondLevelHost detect_second_level(const PagingAnswers& answers,
                                                  std::string_view sysfs_module = "/sys/module");

/// The same, asking /dev/kvm. Where that cannot be opened the module parameters have to do. Throws
/// nothing.
[[nodiscard]] SecondLevelHost detect_second_level();

/// The same, asking a VM that exists.
[[nodiscard]] SecondLevelHost detect_second_level(const kvm::Vm& vm);

/// Mappings of guest memory in the second level, by size: the VM's counters pages_4k, pages_2m, pages_1g.
struct MappedPages {
    std::uint64_t pages_4k = 0;
    std::uint64_t pages_2m = 0;
    std::uint64_t pages_1g = 0;

    [[nodiscard]] std::uint64_t bytes() const noexcept {
        return (pages_4k << 12) + (pages_2m << 21) + (pages_1g << 30);
    }
};

/// What KVM counts now. Throws Error where this kernel does not count.
[[nodiscard]] MappedPages mapped_pages(const kvm::Stats& vm_stats);

} // namespace vmm::prefault
VMM_API_END
