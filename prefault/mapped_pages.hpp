// How much of guest memory KVM has mapped in the second level.
#pragma once

#include <cstdint>

#include "kvm/host/export.hpp"
#include "kvm/stats.hpp"

VMM_API_BEGIN
namespace vmm::prefault {

/// How many mappings of each size the second level has: the VM's counters pages_4k, pages_2m and pages_1g.
struct MappedPages {
    std::uint64_t pages_4k = 0;
    std::uint64_t pages_2m = 0;
    std::uint64_t pages_1g = 0;

    [[nodiscard]] std::uint64_t bytes() const noexcept {
        return (pages_4k << 12) + (pages_2m << 21) + (pages_1g << 30);
    }
};

/// The mappings that KVM counts now. Throws Error if this kernel does not count them.
[[nodiscard]] MappedPages mapped_pages(const kvm::Stats& vm_stats);

} // namespace vmm::prefault
VMM_API_END
