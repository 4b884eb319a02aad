// The second-level page table: which kind this host has, and how much of it KVM says is filled.
#pragma once

#include <cstdint>
#include <string_view>

#include "kvm/export.hpp"
#include "kvm/stats.hpp"

VMM_API_BEGIN
namespace vmm::prefault {

/// How KVM translates guest-physical addresses on this host.
enum class SecondLevelKind {
    kNpt,    ///< AMD nested paging
    kEpt,    ///< Intel extended page tables
    kShadow, ///< no second level in hardware: KVM shadows the guest's own page tables
};

/// The name used in the report: "npt", "ept", "shadow".
[[nodiscard]] std::string_view to_string(SecondLevelKind kind) noexcept;

struct SecondLevelHost {
    SecondLevelKind kind = SecondLevelKind::kShadow;
    bool tdp_mmu = false; ///< KVM's parallel page fault handler (Linux 5.10 and later)
    /// Whether the processor keeps Accessed and Dirty bits in the second level. Without them a mapping that was not
    /// made by an access faults at its first one (arch/x86/kvm/mmu/spte.c, make_spte: prefetched entries are
    /// access-tracked).
    bool accessed_dirty = false;
};

/// Reads KVM's module parameters below `sysfs_module`. What cannot be read counts as absent.
[[nodiscard]] SecondLevelHost detect_second_level(std::string_view sysfs_module = "/sys/module");

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
