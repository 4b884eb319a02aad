#include "vmm/machine/machine_second_level.hpp"

#include <algorithm>
#include <cassert>
#include <string>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/vcpu.hpp"
#include "vmm/host/capabilities.hpp"
#include "vmm/machine/memory_map.hpp"
#include "vmm/machine/x86/cpuid.hpp"

namespace vmm {

MachineSecondLevel::MachineSecondLevel(kvm::Vm& vm, GuestRam& ram, const Config& config,
                                       std::vector<kvm_cpuid_entry2> cpuid)
    : vm_(vm), ram_(ram), config_(config), cpuid_(std::move(cpuid)), next_vcpu_id_(config.vcpus),
      second_level_(vm, ram.memory(), ram.placement(), ram.pins(), setup()) {}

prefault::PrefaultVcpus::Setup MachineSecondLevel::setup() {
    const std::uint64_t mapped_bytes = *align_up(memory_map::address_space_bytes(config_.memory_bytes), kGiB);
    const std::uint64_t largest_bytes =
        std::min(mapped_bytes + memory_map::kRoomForMoreMemory, memory_map::kMaxAddressBytes);
    const prefault::Scratch::Layout scratch{memory_map::kScratchWindow.base, mapped_bytes, largest_bytes,
                                            has_one_gib_pages(cpuid_)};
    assert(prefault::Scratch::bytes_for(scratch) <= memory_map::kScratchWindow.size);
    return {.scratch_slot = memory_map::kScratchMemslot,
            .scratch = scratch,
            .make_vcpu = [this] { return make_prefault_vcpu(); },
            .most_vcpus = prefault_vcpus(config_),
            .smm = config_.prefault.smm,
            .protect_scratch = true};
}

kvm::Vcpu MachineSecondLevel::make_prefault_vcpu() {
    kvm::Vcpu vcpu(vm_, next_vcpu_id_++);
    vcpu.set_cpuid(cpuid_);
    return vcpu;
}

void MachineSecondLevel::prepare(const std::stop_token& stop) {
    const std::lock_guard hold(lock_);
    add_memslots_of_smm();
    second_level_.prepare(config_.prefault.workers, stop);
}

void MachineSecondLevel::add_memslots_of_smm() {
    const auto regions = ram_.memory().regions();
    while (config_.prefault.smm && smm_memslots_ < regions.size()) {
        const MemoryRegion& region = regions[smm_memslots_];
        vm_.add_memslot(static_cast<std::uint32_t>(smm_memslots_), region.range, region.host, kvm::AddressSpace::kSmm);
        ++smm_memslots_;
    }
}

prefault::Report MachineSecondLevel::fill(const prefault::Options& options, const std::stop_token& stop) {
    const std::lock_guard hold(lock_);
    return fill_locked(options, stop);
}

prefault::Report MachineSecondLevel::fill_locked(const prefault::Options& options, const std::stop_token& stop) {
    if (options.scope == prefault::Scope::kAll) {
        add_memslots_of_smm();
    }
    return second_level_.fill(options, stop);
}

void MachineSecondLevel::check_new_range(GuestRange range) const {
    const unsigned address_bits = physical_address_bits(cpuid_);
    const std::string tried = "cannot add memory at " + to_string(range);
    if (range.size == 0 || range.size > UINT64_MAX - to_integer(range.base)) {
        throw Error(tried + ": it must be a range of at least one page");
    }
    if (range.overlaps(memory_map::kHole)) {
        throw Error(tried + ": devices are at " + to_string(memory_map::kHole));
    }
    const std::uint64_t room =
        *align_up(memory_map::address_space_bytes(config_.memory_bytes), kGiB) + memory_map::kRoomForMoreMemory;
    const std::uint64_t end = std::min(room, memory_map::kMaxAddressBytes);
    if (to_integer(range.end()) > end || !fits_address_bits(to_integer(range.end()), address_bits)) {
        throw Error(tried + ": this guest can have memory up to " +
                    to_string(GuestAddress{address_bits < 64 ? std::min(end, std::uint64_t{1} << address_bits) : end}));
    }
}

prefault::Report MachineSecondLevel::add_memory(GuestRange range, const std::stop_token& stop) {
    const std::lock_guard hold(lock_);
    check_new_range(range);
    validate_more_memory(config_, range.size);
    const auto slot = static_cast<std::uint32_t>(ram_.memory().regions().size());
    assert(slot <= memory_map::kScratchMemslot);
    GuestMemory::NewRegion region = ram_.map(range);
    const MemoryRegion mapped = region.region();
    vm_.add_memslot(slot, mapped.range, mapped.host);
    ram_.add(std::move(region));
    prefault::Options options = config_.prefault;
    options.scope = prefault::Scope::kAll;
    options.ranges = {range};
    options.background = false;
    return fill_locked(options, stop);
}

void MachineSecondLevel::log_dirty_pages(bool on) {
    const std::lock_guard hold(lock_);
    std::uint32_t slot = 0;
    for (const MemoryRegion& region : ram_.memory().regions()) {
        vm_.log_dirty_pages(slot, region.range, region.host, on);
        if (slot < smm_memslots_) {
            vm_.log_dirty_pages(slot, region.range, region.host, on, kvm::AddressSpace::kSmm);
        }
        ++slot;
    }
}

prefault::MappedPages MachineSecondLevel::mapped_at_rest() {
    const std::lock_guard hold(lock_);
    return second_level_.mapped_at_rest();
}

} // namespace vmm
