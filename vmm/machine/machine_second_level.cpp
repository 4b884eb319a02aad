#include "vmm/machine/machine_second_level.hpp"

#include <algorithm>
#include <array>
#include <cassert>
#include <string>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/stoppable_read.hpp"
#include "kvm/vcpu.hpp"
#include "vmm/host/capabilities.hpp"
#include "vmm/machine/memory_map.hpp"
#include "vmm/machine/x86/cpuid.hpp"

namespace vmm {

MachineSecondLevel::MachineSecondLevel(kvm::Vm& vm, GuestRam& ram, const Config& config,
                                       std::vector<kvm_cpuid_entry2> cpuid)
    : vm_(vm), ram_(ram), config_(config), cpuid_(std::move(cpuid)), next_vcpu_id_(config.vcpus),
      second_level_(vm, ram.memory(), ram.placement(), ram.pins(), setup()) {
    if (config.prefault.scope == prefault::Scope::kAll && !config.prefault.background && !restores_lazily(config)) {
        add_memslots_of_smm();
        second_level_.add_scratch();
    }
}

prefault::PrefaultVcpus::Setup MachineSecondLevel::setup() {
    const std::uint64_t mapped_bytes = *align_up(memory_map::address_space_bytes(config_.memory_bytes), kGiB);
    const std::uint64_t largest_bytes = memory_map::end_of_room(config_.memory_bytes, config_.memory_max_bytes);
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

std::optional<prefault::Report> MachineSecondLevel::refill(const prefault::Options& options,
                                                           const std::stop_token& stop) {
    const std::lock_guard hold(lock_);
    return logs_dirty_pages_ ? std::nullopt : std::optional(fill_locked(options, stop));
}

void MachineSecondLevel::begin_pieces(const std::stop_token& stop) {
    const std::lock_guard hold(lock_);
    add_memslots_of_smm();
    second_level_.begin_pieces(config_.prefault.method, stop);
    fills_pieces_ = true;
}

bool MachineSecondLevel::fill_piece(GuestRange piece, const std::stop_token& stop) {
    const std::unique_lock hold(lock_, std::try_to_lock);
    return hold && fills_pieces_ && !logs_dirty_pages_ && second_level_.fill_piece(piece, stop);
}

prefault::Report MachineSecondLevel::fill_locked(const prefault::Options& options, const std::stop_token& stop) {
    if (options.scope == prefault::Scope::kAll) {
        add_memslots_of_smm();
    }
    prefault::Report report = second_level_.fill(options, stop);
    if (options.scope == prefault::Scope::kAll) {
        note_filled(report, options.smm, stop);
    }
    return report;
}

/// Notes how much KVM maps when the second level is full. KVM may count more than guest memory (the guest's own page
/// tables, guests of the guest), and this part may go away again. It counts less if a page is not mapped although a
/// write to it does not fault.
void MachineSecondLevel::note_filled(const prefault::Report& report, bool smm, const std::stop_token& stop) noexcept {
    const std::uint64_t wanted = smm ? 2 * report.bytes : report.bytes;
    if (!report.ranges.empty()) { // only added memory, or only a part of memory
        return;
    }
    if (report.complete) {
        // Mappings may be taken away again before they are counted. A value that an earlier fill has proven stays.
        const std::uint64_t counted = std::min(wanted, report.mapped.bytes() + report.smm_mapped.bytes());
        full_bytes_ = full_bytes_is_proven_ ? std::max(full_bytes_.load(), counted) : counted;
        full_bytes_is_proven_ = true;
    } else if (full_bytes_is_proven_) {
        return;
    } else if (!stop.stop_requested()) {
        full_bytes_ = wanted;
    }
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
    const std::uint64_t end = memory_map::end_of_room(config_.memory_bytes, config_.memory_max_bytes);
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
    prefault::Options options = options_for({range});
    options.scope = prefault::Scope::kAll;
    const prefault::Report report = fill_locked(options, stop);
    if (full_bytes_ != 0) { // if populating left something out, the keeper fills it
        full_bytes_ += options.smm ? 2 * range.size : range.size;
    }
    return report;
}

prefault::Options MachineSecondLevel::options_for(std::vector<GuestRange> ranges) const {
    prefault::Options options = config_.prefault;
    options.ranges = std::move(ranges);
    options.background = false;
    options.progress = {};
    return options;
}

prefault::Report MachineSecondLevel::plug([[maybe_unused]] const Hold& hold, GuestRange range,
                                          const std::stop_token& stop) {
    assert(&hold.level_ == this && hold.has());
    validate_more_memory(config_, range.size);
    ram_.plug(range);
    try {
        const prefault::Report report = fill_locked(options_for({range}), stop);
        if (stop.stop_requested()) {
            throw StoppedError("cannot give the guest more memory: a stop was requested");
        }
        if (full_bytes_ != 0) {
            full_bytes_ += config_.prefault.smm ? 2 * range.size : range.size;
        }
        return report;
    } catch (...) {
        static_cast<void>(ram_.unplug(range));
        throw;
    }
}

void MachineSecondLevel::unplug([[maybe_unused]] const Hold& hold, GuestRange range, const std::stop_token& stop) {
    assert(&hold.level_ == this && hold.has());
    const std::uint64_t counted = config_.prefault.smm ? 2 * range.size : range.size;
    const bool is_counted = full_bytes_ > counted;
    if (is_counted) { // This comes first, so that the keeper sees no loss.
        full_bytes_ -= counted;
    }
    std::vector<GuestRange> unpinned;
    try {
        unpinned = ram_.unplug(range);
    } catch (...) {
        full_bytes_ += is_counted ? counted : 0;
        throw;
    }
    if (!unpinned.empty()) {
        static_cast<void>(fill_locked(options_for(std::move(unpinned)), stop));
    }
}

void MachineSecondLevel::log_dirty_pages(bool on) {
    const std::lock_guard hold(lock_);
    log_locked(on);
}

void MachineSecondLevel::log_locked(bool on) {
    ++dirty_log_switches_;
    logs_dirty_pages_ = true; // While logging is switched off, some memory is still logged.
    std::uint32_t slot = 0;
    for (const MemoryRegion& region : ram_.memory().regions()) {
        vm_.log_dirty_pages(slot, region.range, region.host, on);
        if (slot < smm_memslots_) {
            vm_.log_dirty_pages(slot, region.range, region.host, on, kvm::AddressSpace::kSmm);
        }
        ++slot;
    }
    logs_dirty_pages_ = on;
}

MachineSecondLevel::DirtyLog::DirtyLog(Hold& hold) : level_(hold.level_) {
    if (level_.logs_dirty_pages_) {
        throw UsageError("cannot log dirty pages: they are logged already (Machine::log_dirty_pages())");
    }
    level_.own_writes_ = std::make_unique<WriteLog>(level_.ram_.memory().regions());
    level_.ram_.log_writes(level_.own_writes_.get());
    try {
        by_piece_ = level_.vm_.watch_by_piece(true);
        for (const MemoryRegion& region : level_.ram_.memory().regions()) {
            watched_.emplace_back(static_cast<std::size_t>((region.range.size + kWatchedAtOnce - 1) / kWatchedAtOnce));
        }
        level_.log_locked(true);
    } catch (...) {
        level_.ram_.log_writes(nullptr);
        static_cast<void>(level_.vm_.watch_by_piece(false));
        throw;
    }
}

MachineSecondLevel::DirtyLog::~DirtyLog() {
    try {
        level_.log_locked(false);
    } catch (const Error&) { // KVM goes on logging. That costs time, and has no other effect.
    }
    static_cast<void>(level_.vm_.watch_by_piece(false));
}

void MachineSecondLevel::DirtyLog::watch(GuestRange range) {
    if (!by_piece_) {
        return;
    }
    std::uint32_t slot = 0;
    for (const MemoryRegion& region : level_.ram_.memory().regions()) {
        if (region.range.contains(range)) {
            const std::uint64_t begin = to_integer(range.base) - to_integer(region.range.base);
            for (std::uint64_t piece = begin / kWatchedAtOnce; piece * kWatchedAtOnce < begin + range.size; ++piece) {
                watch_piece(slot, region, piece);
            }
            return;
        }
        ++slot;
    }
}

/// Watches piece `piece` of `region`, which is memslot `slot`. Nobody can add memory meanwhile (Hold).
void MachineSecondLevel::DirtyLog::watch_piece(std::uint32_t slot, const MemoryRegion& region, std::uint64_t piece) {
    if (watched_[slot][static_cast<std::size_t>(piece)].exchange(true)) {
        return;
    }
    constexpr std::uint64_t kPages = kWatchedAtOnce / WriteLog::kPageBytes;
    static constexpr auto kAll = [] {
        std::array<std::uint64_t, kPages / 64> words{};
        words.fill(~std::uint64_t{0});
        return words;
    }();
    const std::uint64_t first = piece * kPages;
    const std::uint64_t count = std::min(kPages, region.range.size / WriteLog::kPageBytes - first);
    level_.vm_.watch_pages(slot, first, count, kAll);
    if (slot < level_.smm_memslots_) {
        level_.vm_.watch_pages(slot, first, count, kAll, kvm::AddressSpace::kSmm);
    }
}

PageBits MachineSecondLevel::DirtyLog::take_of_vcpus() {
    PageBits pages;
    std::uint32_t slot = 0;
    for (const MemoryRegion& region : level_.ram_.memory().regions()) {
        pages.push_back(level_.vm_.take_dirty_log(slot, region.range.size));
        if (slot < level_.smm_memslots_) {
            join(pages.back(), level_.vm_.take_dirty_log(slot, region.range.size, kvm::AddressSpace::kSmm));
        }
        ++slot;
    }
    return pages;
}

PageBits MachineSecondLevel::DirtyLog::take_all() {
    PageBits pages = take_of_vcpus();
    for (std::size_t i = 0; i < pages.size(); ++i) {
        join(pages[i], level_.own_writes_->take(i));
    }
    return pages;
}

PageBits MachineSecondLevel::DirtyLog::take_last() {
    PageBits pages = take_all();
    level_.ram_.log_writes(nullptr);
    return pages;
}

prefault::MappedPages MachineSecondLevel::mapped_at_rest() {
    const std::lock_guard hold(lock_);
    return second_level_.mapped_at_rest();
}

} // namespace vmm
