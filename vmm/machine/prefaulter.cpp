#include "vmm/machine/prefaulter.hpp"

#include <algorithm>
#include <cassert>
#include <string>
#include <utility>

#include "kvm/host/error.hpp"
#include "vmm/host/capabilities.hpp"
#include "vmm/machine/memory_map.hpp"
#include "vmm/machine/x86/cpuid.hpp"

namespace vmm {

Prefaulter::Prefaulter(kvm::Vm& vm, GuestRam& ram, const Config& config, const Host& host,
                       std::vector<kvm_cpuid_entry2> cpuid)
    : vm_(vm), ram_(ram), config_(config), host_(host), cpuid_(std::move(cpuid)), vm_stats_(vm.stats()) {}

void Prefaulter::prepare(const std::stop_token& stop) {
    if (!filler_) {
        add_filler();
    }
    add_memslots_of_smm();
    filler_->grow(prefault_vcpus(config_), stop);
    ready_filler_.store(&*filler_);
}

void Prefaulter::add_filler() {
    const std::uint64_t mapped_bytes = *align_up(memory_map::address_space_bytes(config_.memory_bytes), kGiB);
    const std::uint64_t largest_bytes =
        std::min(mapped_bytes + memory_map::kRoomForMoreMemory, memory_map::kMaxAddressBytes);
    const prefault::Scratch::Layout scratch{memory_map::kScratchWindow.base, mapped_bytes, largest_bytes,
                                            host_.one_gib_pages};
    assert(prefault::Scratch::bytes_for(scratch) <= memory_map::kScratchWindow.size);
    filler_.emplace(vm_,
                    prefault::SecondLevelFiller::Place{memory_map::kScratchMemslot, scratch, config_.vcpus,
                                                       host_.second_level, config_.prefault.smm, true},
                    cpuid_);
}

void Prefaulter::add_memslots_of_smm() {
    const auto regions = ram_.memory().regions();
    while (config_.prefault.smm && smm_memslots_ < regions.size()) {
        const MemoryRegion& region = regions[smm_memslots_];
        vm_.add_memslot(static_cast<std::uint32_t>(smm_memslots_), region.range, region.host, kvm::AddressSpace::kSmm);
        ++smm_memslots_;
    }
}

prefault::Report Prefaulter::run(const prefault::Options& options, const std::stop_token& stop) {
    const std::lock_guard hold(lock_);
    return run_locked(options, stop);
}

prefault::Report Prefaulter::run_locked(const prefault::Options& options, const std::stop_token& stop) {
    std::vector<GuestRange> ram;
    for (const MemoryRegion& region : ram_.memory().regions()) {
        ram.push_back(region.range);
    }
    if (options.smm && !config_.prefault.smm) {
        throw Error("cannot fill the second level of system management mode: the machine was made without it "
                    "(Config::prefault.smm)");
    }
    validate_workers(options);
    validate_ranges(options.ranges, ram, ram_.memory().page_size());
    prefault::MethodChoice method;
    if (options.scope == prefault::Scope::kAll) {
        method = prefault::choose_method(options.method, host_.second_level, host_.pre_fault_memory);
        prepare(stop);
    }
    const prefault::Target target{
        ram_.memory(),     ram_.placement(), ram_.node_cpus(), ram_.pins(), filler_ ? &*filler_ : nullptr,
        std::move(method), &guest_runs_};
    return prefault::run(target, options, stop);
}

void Prefaulter::check_new_range(GuestRange range) const {
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
    if (to_integer(range.end()) > end || !fits_address_bits(to_integer(range.end()), host_.address_bits)) {
        throw Error(tried + ": this guest can have memory up to " +
                    to_string(GuestAddress{
                        host_.address_bits < 64 ? std::min(end, std::uint64_t{1} << host_.address_bits) : end}));
    }
}

prefault::Report Prefaulter::add_memory(GuestRange range, const std::stop_token& stop) {
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
    return run_locked(options, stop);
}

void Prefaulter::log_dirty_pages(bool on) {
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

prefault::MappedPages Prefaulter::mapped_at_rest() {
    const std::lock_guard hold(lock_);
    if (filler_ && filler_->workers() != 0) {
        filler_->map_scratch_again();
    }
    return mapped();
}

prefault::MappedPages Prefaulter::mapped() const {
    const prefault::SecondLevelFiller* const filler = ready_filler_.load();
    return filler != nullptr ? filler->mapped_guest_memory() : prefault::mapped_pages(vm_stats_);
}

} // namespace vmm
