// A VM that the prefault can work on: memory on both sides of the hole, dummies, and one vCPU that stands for the
// guest's own.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "kvm/guest_memory.hpp"
#include "kvm/kick.hpp"
#include "kvm/system.hpp"
#include "kvm/vm.hpp"
#include "prefault/dummy_vcpu.hpp"
#include "prefault/prefault.hpp"
#include "prefault/scratch.hpp"
#include "prefault/second_level.hpp"

namespace vmm::testing {

struct PrefaultVm {
    static constexpr std::uint64_t kHighBase = 4 * kGiB;
    static constexpr std::uint64_t kDefaultBytes = 32 * kMiB;

    /// Half of `memory_bytes` lies below the hole.
    explicit PrefaultVm(PageSize page_size, unsigned workers = 2, std::uint64_t memory_bytes = kDefaultBytes)
        : memory(std::array{GuestRange{GuestAddress{0}, memory_bytes / 2},
                            GuestRange{GuestAddress{kHighBase}, memory_bytes / 2}},
                 page_size),
          vm(system) {
        std::uint32_t slot = 0;
        for (const MemoryRegion& region : memory.regions()) {
            vm.add_memslot(slot++, region.range, region.host);
        }
        vm.create_irqchip();
        filler.emplace(
            vm, prefault::SecondLevelFiller::Place{slot, {kScratchBase, kHighBase + kGiB, false}, kGuestVcpus, kind},
            cpuid, workers);
        guest_vcpu.emplace(vm, 0, cpuid, filler->scratch());
    }

    [[nodiscard]] std::uint64_t memory_pages() const { return memory.size_bytes() / 4096; }

    /// Every stage; what `scope` asks for.
    prefault::Report prefault(prefault::Scope scope, const std::stop_token& stop = {}) {
        return prefault::run(memory, &*filler, {scope, prefault::Pin::kNone, 2}, stop);
    }

    /// The second level alone, again.
    prefault::Report fill(const std::stop_token& stop = {}) {
        prefault::Report report;
        filler->fill(memory, report, stop);
        return report;
    }

    /// How many second-level faults the guest's vCPU takes while it writes to every page of memory.
    std::uint64_t faults_of_guest_touching_all_memory() {
        const kvm::AllSignalsBlocked for_this_thread;
        const kvm::Stats stats = guest_vcpu->stats();
        // Its first entry loads the page tables, which is none of the memory's faults.
        guest_vcpu->touch({GuestAddress{0}, 4096}, 4096, {});
        const std::uint64_t before = stats.value("pf_fixed").value();
        for (const MemoryRegion& region : memory.regions()) {
            guest_vcpu->touch(region.range, 4096, {});
        }
        return stats.value("pf_fixed").value() - before;
    }

    static constexpr GuestAddress kScratchBase{0xe0000000};
    static constexpr unsigned kGuestVcpus = 2;

    kvm::System system;
    std::vector<kvm_cpuid_entry2> cpuid = system.supported_cpuid();
    prefault::SecondLevelKind kind = prefault::detect_second_level().kind;
    GuestMemory memory;
    kvm::Vm vm;
    std::optional<prefault::SecondLevelFiller> filler;
    std::optional<prefault::DummyVcpu> guest_vcpu; ///< on the same page tables as the dummies
};

/// Writes something else to every 8 bytes of memory.
inline void fill_with_pattern(const GuestMemory& memory) {
    for (const MemoryRegion& region : memory.regions()) {
        for (std::uint64_t offset = 0; offset < region.range.size; offset += 8) {
            const std::uint64_t value = (to_integer(region.range.base) + offset) * 0x9e3779b97f4a7c15;
            std::memcpy(region.host + offset, &value, sizeof value);
        }
    }
}

/// How many of these 8 bytes are not what fill_with_pattern() wrote.
[[nodiscard]] inline std::uint64_t count_changes_of_pattern(const GuestMemory& memory) {
    std::uint64_t changes = 0;
    for (const MemoryRegion& region : memory.regions()) {
        for (std::uint64_t offset = 0; offset < region.range.size; offset += 8) {
            const std::uint64_t expected = (to_integer(region.range.base) + offset) * 0x9e3779b97f4a7c15;
            changes += std::memcmp(region.host + offset, &expected, sizeof expected) != 0 ? 1 : 0;
        }
    }
    return changes;
}

} // namespace vmm::testing
