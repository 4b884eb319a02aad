// A VM that can be prefaulted: memory on both sides of the hole, prefault vCPUs, and one vCPU that stands for the
// guest's vCPU.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvm/host/blocked_signals.hpp"
#include "kvm/host/guest_memory.hpp"
#include "kvm/system.hpp"
#include "kvm/vcpu.hpp"
#include "kvm/vm.hpp"
#include "prefault/host/workforce.hpp"
#include "prefault/prefault_vcpus.hpp"
#include "prefault/second_level.hpp"
#include "prefault/x86/prefault_vcpu.hpp"
#include "prefault/x86/scratch.hpp"
#include "prefault/x86/second_level_host.hpp"

namespace vmm::testing {

struct PrefaultVm {
    static constexpr std::uint64_t kHighBase = 4 * kGiB;
    static constexpr std::uint64_t kDefaultBytes = 32 * kMiB;

    /// Half of `memory_bytes` is below the hole. With `smm` the memory also exists in system management mode.
    explicit PrefaultVm(PageSize page_size, unsigned workers = 2, std::uint64_t memory_bytes = kDefaultBytes,
                        bool smm = false, bool protect_scratch = false)
        : memory(std::array{GuestRange{GuestAddress{0}, memory_bytes / 2},
                            GuestRange{GuestAddress{kHighBase}, memory_bytes / 2}},
                 page_size),
          vm(system) {
        std::uint32_t slot = 0;
        for (const MemoryRegion& region : memory.regions()) {
            vm.add_memslot(slot, region.range, region.host);
            if (smm) {
                vm.add_memslot(slot, region.range, region.host, kvm::AddressSpace::kSmm);
            }
            placement.ranges.push_back({region.range, std::nullopt});
            ++slot;
        }
        vm.create_irqchip();
        second_level.emplace(
            vm, memory, placement, pins,
            prefault::PrefaultVcpus::Setup{.scratch_slot = slot,
                                           .scratch = {kScratchBase, kHighBase + kGiB, kHighBase + kGiB, false},
                                           .make_vcpu = [this, id = kGuestVcpus]() mutable { return make_vcpu(id++); },
                                           .smm = smm,
                                           .protect_scratch = protect_scratch});
        second_level->prefault_vcpus().grow(workers);
        guest_vcpu.emplace(make_vcpu(0), scratch());
    }

    /// A vCPU with the same CPUID as all others.
    [[nodiscard]] kvm::Vcpu make_vcpu(unsigned id) const {
        kvm::Vcpu vcpu(vm, id);
        vcpu.set_cpuid(cpuid);
        return vcpu;
    }

    [[nodiscard]] std::uint64_t memory_pages() const { return memory.size_bytes() / 4096; }
    [[nodiscard]] bool is_shadow() const { return host.kind == prefault::SecondLevelKind::kShadow; }
    /// True if KVM has KVM_PRE_FAULT_MEMORY.
    [[nodiscard]] bool has_ioctl() const { return !is_shadow() && vm.extension(KVM_CAP_PRE_FAULT_MEMORY) != 0; }

    [[nodiscard]] prefault::PrefaultVcpus& prefault_vcpus() { return second_level->prefault_vcpus(); }
    [[nodiscard]] const prefault::Scratch& scratch() { return prefault_vcpus().scratch(); }

    /// Runs the prefault that `options` ask for.
    prefault::Report prefault(const prefault::Options& options, const std::stop_token& stop = {}) {
        return second_level->fill(options, stop);
    }
    /// Runs every stage that `scope` asks for, with two workers.
    prefault::Report prefault(prefault::Scope scope, const std::stop_token& stop = {}) {
        return prefault({.scope = scope, .workers = 2}, stop);
    }

    /// Makes the prefault vCPUs touch all memory, without the host side. False if they did not finish.
    bool touch_all_memory(const std::stop_token& stop = {}) {
        prefault::PrefaultVcpus& vcpus = prefault_vcpus();
        vcpus.begin(kvm::AddressSpace::kNormal, memory.regions().back().range.end(), stop);
        prefault::Workforce workforce;
        workforce.workers = vcpus.count();
        return prefault::for_each_chunk(
            placement.ranges, 2 * kMiB, workforce, prefault::Stage::kSecondLevel, "prefault", stop,
            [&](unsigned worker, GuestRange chunk, const std::stop_token& crew_stop) {
                return vcpus.touch_chunk(kvm::AddressSpace::kNormal, worker, chunk, 4096, crew_stop);
            });
    }

    /// How many second-level faults the guest's vCPU takes while it writes to every page of `ranges`.
    std::uint64_t faults_of_guest_touching(std::span<const GuestRange> ranges) {
        using Access = prefault::PrefaultVcpu::Access;
        return faults_of_touching(*guest_vcpu, ranges, scratch().is_read_only() ? Access::kRead : Access::kWrite);
    }
    std::uint64_t faults_of_guest_touching_all_memory() { return faults_of_guest_touching(all_ranges()); }

    /// The same for any vCPU on the prefault vCPUs' page tables. It touches the scratch slot according to
    /// `scratch_access`.
    static std::uint64_t
    faults_of_touching(prefault::PrefaultVcpu& vcpu, std::span<const GuestRange> ranges,
                       prefault::PrefaultVcpu::Access scratch_access = prefault::PrefaultVcpu::Access::kWrite) {
        const AllSignalsBlocked for_this_thread;
        // Its first entry loads the page tables. Those faults are not faults of the memory.
        touch(vcpu, {kScratchBase, 4096}, scratch_access);
        const std::uint64_t before = vcpu.stats().value("pf_fixed").value();
        for (const GuestRange& range : ranges) {
            touch(vcpu, range);
        }
        return vcpu.stats().value("pf_fixed").value() - before;
    }

    [[nodiscard]] std::vector<GuestRange> all_ranges() const {
        std::vector<GuestRange> ranges;
        for (const MemoryRegion& region : memory.regions()) {
            ranges.push_back(region.range);
        }
        return ranges;
    }

    /// Switches KVM's dirty logging of all memory.
    void log_dirty_pages(bool on) {
        std::uint32_t slot = 0;
        for (const MemoryRegion& region : memory.regions()) {
            vm.log_dirty_pages(slot++, region.range, region.host, on);
        }
    }

    static constexpr GuestAddress kScratchBase{0xe0000000};
    static constexpr unsigned kGuestVcpus = 2;

    kvm::System system;
    std::vector<kvm_cpuid_entry2> cpuid = system.supported_cpuid();
    prefault::SecondLevelHost host = prefault::detect_second_level();
    GuestMemory memory;
    prefault::Placement placement; ///< on no node
    prefault::PinnedMemory pins{prefault::Pin::kNone};
    kvm::Vm vm;
    std::optional<prefault::SecondLevel> second_level;
    std::optional<prefault::PrefaultVcpu> guest_vcpu; ///< on the same page tables as the prefault vCPUs

  private:
    static void touch(prefault::PrefaultVcpu& vcpu, GuestRange range,
                      prefault::PrefaultVcpu::Access access = prefault::PrefaultVcpu::Access::kWrite) {
        const auto result = vcpu.touch(range, 4096, {}, access);
        EXPECT_EQ(result.end, prefault::TouchResult::End::kDone) << result.why;
    }
};

/// Writes a different value to every 8 bytes of memory.
inline void fill_with_pattern(const GuestMemory& memory) {
    for (const MemoryRegion& region : memory.regions()) {
        for (std::uint64_t offset = 0; offset < region.range.size; offset += 8) {
            const std::uint64_t value = (to_integer(region.range.base) + offset) * 0x9e3779b97f4a7c15;
            std::memcpy(region.host + offset, &value, sizeof value);
        }
    }
}

/// How many of these 8-byte values are not those that fill_with_pattern() wrote.
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
