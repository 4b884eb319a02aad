#include "prefault/second_level_filler.hpp"

#include <algorithm>
#include <cassert>
#include <utility>

#include "kvm/host/error.hpp"
#include "prefault/host/parallel.hpp"

namespace vmm::prefault {

namespace {

constexpr std::uint64_t kSmallPage = 4 * kKiB;
/// One pass finds what a mapping smaller than expected left out, a second one what was taken away meanwhile; the last
/// shows that nothing is missing any more.
constexpr unsigned kMostPasses = 3;

std::uint64_t faults_of(const std::deque<DummyVcpu>& dummies) {
    std::uint64_t sum = 0;
    for (const DummyVcpu& dummy : dummies) {
        sum += dummy.stats().value("pf_fixed").value_or(0);
    }
    return sum;
}

/// Touches a chunk, and again if that failed: what led the dummy astray may be over. Under QEMU's emulation of nested
/// paging (10.0 and 11.1, thread=multi) a vCPU on the emulated machine's processor 0 takes a triple fault now and then:
/// another processor that restores floating-point state corrupts it (tests/lab/run.sh). Once more where a guest runs,
/// which may lead it astray each time, at up to kMostCpuSeconds; else twice. One that was held is let in again only
/// where no guest runs: a guest would hold it as long.
DummyVcpu::Outcome touch_persistently(DummyVcpu& dummy, GuestRange chunk, std::uint64_t stride_bytes, bool guest_runs,
                                      const std::stop_token& stop) {
    using End = DummyVcpu::Outcome::End;
    const unsigned most_failures = guest_runs ? 2 : 3;
    DummyVcpu::Outcome outcome = dummy.touch(chunk, stride_bytes, stop);
    for (unsigned failures = 1; failures < most_failures && outcome.end == End::kFailed; ++failures) {
        outcome = dummy.touch(chunk, stride_bytes, stop);
    }
    return outcome.end == End::kHeld && !guest_runs ? dummy.touch(chunk, stride_bytes, stop) : outcome;
}

/// See Scratch::Protection.
Scratch::Protection protection_of(const kvm::Vm& vm, const SecondLevelFiller::Place& place) {
    const bool read_only =
        place.protect_scratch && place.host.kind == SecondLevelKind::kShadow && vm.extension(KVM_CAP_READONLY_MEM) != 0;
    return read_only ? Scratch::Protection::kReadOnly : Scratch::Protection::kWritable;
}

std::uint64_t difference(std::uint64_t after, std::uint64_t before) {
    return after > before ? after - before : 0;
}

MappedPages difference(const MappedPages& after, const MappedPages& before) {
    return {difference(after.pages_4k, before.pages_4k), difference(after.pages_2m, before.pages_2m),
            difference(after.pages_1g, before.pages_1g)};
}

} // namespace

std::string_view to_string(Method method) noexcept {
    switch (method) {
    case Method::kNone:
        return "none";
    case Method::kAuto:
        return "auto";
    case Method::kTouch:
        return "touch";
    case Method::kIoctl:
        return "ioctl";
    }
    return "?";
}

std::string_view to_string(Proof proof) noexcept {
    switch (proof) {
    case Proof::kNone:
        return "none";
    case Proof::kCounters:
        return "counters";
    case Proof::kTouch:
        return "touch";
    }
    return "?";
}

MethodChoice choose_method(Method wanted, const SecondLevelHost& host, bool has_pre_fault_memory) {
    const bool shadow = host.kind == SecondLevelKind::kShadow;
    const std::string why_not = shadow                 ? "shadow paging: KVM_PRE_FAULT_MEMORY needs EPT or NPT"
                                : has_pre_fault_memory ? ""
                                : host.may_be_shadow()
                                    ? "this KVM has no KVM_PRE_FAULT_MEMORY (Linux 6.11, and EPT or NPT)"
                                    : "this KVM has no KVM_PRE_FAULT_MEMORY (Linux 6.11)";
    switch (wanted) {
    case Method::kTouch:
        return {Method::kTouch, "asked for"};
    case Method::kIoctl:
        if (!why_not.empty()) {
            throw Error("cannot prefault by ioctl: " + why_not + " (take --prefault-method=auto or touch)");
        }
        return {Method::kIoctl, "asked for"};
    case Method::kAuto:
    case Method::kNone:
        break;
    }
    if (!why_not.empty()) {
        return {Method::kTouch, why_not};
    }
    if (!host.accessed_dirty) {
        return {Method::kIoctl,
                "this KVM has KVM_PRE_FAULT_MEMORY; whether the host keeps Accessed and Dirty bits is not "
                "known, so every page is touched afterwards"};
    }
    if (!*host.accessed_dirty) {
        return {Method::kTouch, "this host keeps no Accessed and Dirty bits in the second level (eptad=N): what "
                                "KVM_PRE_FAULT_MEMORY maps would fault at its first access"};
    }
    return {Method::kIoctl, "this KVM has KVM_PRE_FAULT_MEMORY, and the host keeps Accessed and Dirty bits"};
}

SecondLevelFiller::SecondLevelFiller(kvm::Vm& vm, const Place& place, std::span<const kvm_cpuid_entry2> cpuid)
    : vm_(vm), vm_stats_(vm.stats()), host_(place.host), smm_(place.smm), cpuid_(cpuid.begin(), cpuid.end()),
      make_vcpu_(place.make_vcpu), next_vcpu_id_(place.first_vcpu_id),
      scratch_(vm, place.memslot, place.scratch, protection_of(vm, place)) {}

void SecondLevelFiller::grow(unsigned workers, const std::stop_token& stop) {
    while (dummies_.size() < workers) {
        const unsigned id = next_vcpu_id_++;
        if (make_vcpu_) {
            dummies_.emplace_back(make_vcpu_(id), scratch_);
        } else {
            dummies_.emplace_back(vm_, id, cpuid_, scratch_);
        }
    }
    if (smm_ && !scratch_in_smm_) {
        scratch_.add_to(vm_, kvm::AddressSpace::kSmm);
        scratch_in_smm_ = true;
    }
    while (smm_ && smm_dummies_.size() < workers) {
        smm_dummies_.emplace_back(vm_, next_vcpu_id_++, cpuid_, scratch_, kvm::AddressSpace::kSmm);
    }
    if (scratch_mappings_ == 0 && !dummies_.empty()) {
        scratch_mappings_ = count_scratch_mappings(stop);
    }
}

GuestRange SecondLevelFiller::touched_part_of_scratch() const noexcept {
    // "Every page of every memslot", ours too, so that what it adds to KVM's totals is known. On shadow paging only the
    // stub's page: the tables are write-protected there, and writing to them makes KVM drop what it has shadowed.
    GuestRange range = scratch_.used_range();
    if (host_.may_be_shadow()) {
        range.size = kSmallPage;
    }
    return range;
}

DummyVcpu::Outcome SecondLevelFiller::touch_scratch(DummyVcpu& dummy, const std::stop_token& stop,
                                                    const std::function<void()>& tick) {
    using Access = DummyVcpu::Access;
    DummyVcpu::Outcome outcome{DummyVcpu::Outcome::End::kStopped, ""};
    run_in_parallel({1, "prefault", {}, false, tick}, stop, [&](unsigned, const std::stop_token& crew_stop) {
        outcome = dummy.touch(touched_part_of_scratch(), kSmallPage, crew_stop,
                              scratch_.is_read_only() ? Access::kRead : Access::kWrite);
    });
    return outcome;
}

std::uint64_t SecondLevelFiller::count_scratch_mappings(const std::stop_token& stop) {
    const std::uint64_t all = scratch_.used_range().size / kSmallPage;
    if (!host_.may_be_shadow()) {
        return all;
    }
    // Here KVM maps some neighbours of the stub's page along with it; how many, only its counters say.
    const std::uint64_t before = mapped_pages(vm_stats_).pages_4k;
    if (!heed(touch_scratch(dummies_.front(), stop))) {
        return 0;
    }
    const std::uint64_t after = mapped_pages(vm_stats_).pages_4k;
    return std::clamp<std::uint64_t>(difference(after, before), 1, all);
}

std::uint64_t SecondLevelFiller::exits() const {
    std::uint64_t sum = 0;
    for (const DummyVcpu& dummy : dummies_) {
        sum += dummy.stats().value("exits").value_or(0);
    }
    return sum;
}

MappedPages SecondLevelFiller::mapped_guest_memory() const {
    MappedPages mapped = mapped_pages(vm_stats_);
    mapped.pages_4k -= std::min(mapped.pages_4k, scratch_mappings_.load());
    return mapped;
}

void SecondLevelFiller::map_scratch_again() {
    if (has_failed_) { // A count is not worth letting in again what a guest has led astray.
        return;
    }
    constexpr unsigned kMostTicks = 20; // ten a second
    scratch_.refresh();
    std::stop_source patience;
    unsigned ticks = 0;
    heed(touch_scratch(dummies_.front(), patience.get_token(), [&] {
        if (++ticks == kMostTicks) {
            patience.request_stop();
        }
    }));
}

void SecondLevelFiller::begin(const Job& job, const std::stop_token& stop) {
    assert(job.method == Method::kTouch || job.method == Method::kIoctl);
    assert(job.workforce.workers <= workers());
    std::uint64_t end = 0;
    for (const PlacedRange& placed : job.ranges) {
        end = std::max(end, to_integer(placed.range.end()));
    }
    scratch_.map_up_to(end);
    scratch_.refresh();
    if (!host_.may_be_shadow()) {
        scratch_mappings_ = scratch_.used_range().size / kSmallPage * (smm_filled_ ? 2 : 1);
    }
    take_problem();
    held_ = false;
    heed(touch_scratch(dummies_.front(), stop));
}

std::string SecondLevelFiller::take_problem() {
    const std::lock_guard hold(problem_lock_);
    return std::exchange(problem_, {});
}

void SecondLevelFiller::refuse_dummies_that_fail(const Job& job, const std::string& problem) {
    if (!job.guest_runs && !problem.empty()) { // No guest can have led them astray.
        throw Error("cannot fill the second level: " + problem);
    }
}

bool SecondLevelFiller::heed(const DummyVcpu::Outcome& outcome) {
    using End = DummyVcpu::Outcome::End;
    if (outcome.end == End::kHeld) {
        held_ = true;
    }
    if (outcome.end == End::kFailed || outcome.end == End::kHeld) {
        has_failed_ = true;
        const std::lock_guard hold(problem_lock_);
        if (problem_.empty()) {
            problem_ = outcome.why;
        }
    }
    return outcome.end == End::kDone;
}

bool SecondLevelFiller::fill_chunk(const Job& job, unsigned worker, GuestRange chunk, const std::stop_token& stop) {
    if (held_) {
        return false;
    }
    const std::uint64_t mapping_bytes = largest_page_bytes(job.memory.page_size());
    DummyVcpu& dummy = dummies_[worker];
    return heed(job.method == Method::kIoctl ? dummy.pre_fault(chunk, mapping_bytes, stop)
                                             : touch_persistently(dummy, chunk, mapping_bytes, job.guest_runs, stop));
}

bool SecondLevelFiller::touch_all(std::deque<DummyVcpu>& dummies, const Job& job, Stage stage,
                                  std::uint64_t stride_bytes, const std::stop_token& stop) {
    const std::uint64_t chunk_bytes =
        Plan::chunk_bytes_for(total_bytes(job.ranges), job.workforce.workers, stride_bytes);
    return for_each_chunk(
        job.ranges, chunk_bytes, job.workforce, stage, "prefault", stop,
        [&](unsigned worker, GuestRange chunk, const std::stop_token& crew_stop) {
            return !held_ && heed(touch_persistently(dummies[worker], chunk, stride_bytes, job.guest_runs, crew_stop));
        });
}

FillResult SecondLevelFiller::verify(const Job& job, const std::stop_token& stop) {
    // The counts are of the whole VM. They tell of this job if it is about all memory, and if nothing else is mapped:
    // no second address space, and on shadow paging no page tables of a running guest's own.
    const auto counters_tell = [&] {
        return job.all_memory && !smm_filled_ && !(job.guest_runs && host_.may_be_shadow());
    };
    // Mapped is not enough where the first access of what was mapped for no access faults all the same.
    const bool is_certain = job.method == Method::kTouch || host_.accessed_dirty.value_or(false);
    const std::uint64_t wanted_bytes = total_bytes(job.ranges);
    FillResult result;
    result.problem = take_problem();
    std::uint64_t faults = 1;
    for (unsigned pass = 0; !stop.stop_requested(); ++pass) {
        result.mapped = mapped_guest_memory();
        if (result.problem.empty() && counters_tell() && (is_certain || pass > 0) &&
            result.mapped.bytes() >= wanted_bytes) {
            result.proof = Proof::kCounters;
            return result;
        }
        if (result.problem.empty() && faults == 0) {
            result.proof = Proof::kTouch;
            return result;
        }
        if (pass == kMostPasses || held_) {
            refuse_dummies_that_fail(job, result.problem);
            if (result.problem.empty()) {
                result.problem = "mappings are taken away as fast as they are made";
            }
            return result;
        }
        scratch_.refresh();
        const std::uint64_t before = faults_of(dummies_);
        touch_all(dummies_, job, Stage::kSecondLevel, kSmallPage, stop);
        faults = difference(faults_of(dummies_), before);
        result.top_up_passes += faults != 0 ? 1 : 0;
        result.problem = take_problem();
    }
    result.mapped = mapped_guest_memory();
    result.problem.clear();
    return result;
}

FillResult SecondLevelFiller::fill(const Job& job, const std::stop_token& stop) {
    begin(job, stop);
    const std::uint64_t mapping_bytes = largest_page_bytes(job.memory.page_size());
    const std::uint64_t chunk_bytes =
        Plan::chunk_bytes_for(total_bytes(job.ranges), job.workforce.workers, mapping_bytes);
    for_each_chunk(job.ranges, chunk_bytes, job.workforce, Stage::kSecondLevel, "prefault", stop,
                   [&](unsigned worker, GuestRange chunk, const std::stop_token& crew_stop) {
                       return fill_chunk(job, worker, chunk, crew_stop);
                   });
    return verify(job, stop);
}

FillResult SecondLevelFiller::fill_smm(const Job& job, const std::stop_token& stop) {
    assert(!smm_dummies_.empty() && host_.kind != SecondLevelKind::kShadow);
    take_problem();
    scratch_.refresh();
    held_ = false;
    if (heed(touch_scratch(smm_dummies_.front(), stop))) {
        scratch_mappings_ = 2 * (scratch_.used_range().size / kSmallPage); // Now both address spaces have the slot.
    }
    const MappedPages before = mapped_guest_memory();
    smm_filled_ = true;
    FillResult result;
    std::uint64_t stride = largest_page_bytes(job.memory.page_size());
    for (unsigned pass = 0; pass <= kMostPasses && !held_ && !stop.stop_requested(); ++pass) {
        const std::uint64_t faults_before = faults_of(smm_dummies_);
        const bool finished = touch_all(smm_dummies_, job, Stage::kSmm, stride, stop);
        const bool every_page = stride == kSmallPage;
        const std::uint64_t faults = difference(faults_of(smm_dummies_), faults_before);
        result.mapped = difference(mapped_guest_memory(), before);
        result.top_up_passes += pass > 0 && faults != 0 ? 1 : 0;
        result.problem = take_problem();
        if (finished && every_page && faults == 0) {
            result.proof = Proof::kTouch;
            return result;
        }
        stride = kSmallPage;
    }
    if (result.problem.empty()) {
        result.problem = take_problem();
    }
    if (!stop.stop_requested()) {
        refuse_dummies_that_fail(job, result.problem);
    }
    if (result.problem.empty() && !stop.stop_requested()) {
        result.problem = "mappings are taken away as fast as they are made";
    }
    return result;
}

} // namespace vmm::prefault
