#include "prefault/prefault_vcpus.hpp"

#include <algorithm>
#include <cassert>
#include <utility>

#include "prefault/host/crew.hpp"

namespace vmm::prefault {

namespace {

/// Touches a chunk, and tries again if that failed, because the cause may be over. Under QEMU's emulation of nested
/// paging (10.0 and 11.1, thread=multi) a vCPU on the emulated machine's processor 0 sometimes takes a triple fault:
/// another processor that restores floating-point state corrupts it (tests/lab/run.sh).
///
/// If no guest runs, a vCPU that failed runs again up to two times, and a vCPU that was held runs again once. If a
/// guest runs, a vCPU that failed runs again only once, because the guest may lead it astray each time, for up to
/// kMostCpuSeconds. A vCPU that was held does not run again then.
TouchResult touch_persistently(PrefaultVcpu& vcpu, GuestRange chunk, std::uint64_t stride_bytes, bool guest_runs,
                               const std::stop_token& stop) {
    using End = TouchResult::End;
    const unsigned most_failures = guest_runs ? 2 : 3;
    TouchResult result = vcpu.touch(chunk, stride_bytes, stop);
    for (unsigned failures = 1; failures < most_failures && result.end == End::kFailed; ++failures) {
        result = vcpu.touch(chunk, stride_bytes, stop);
    }
    return result.end == End::kHeld && !guest_runs ? vcpu.touch(chunk, stride_bytes, stop) : result;
}

std::uint64_t sum_of(const std::deque<PrefaultVcpu>& vcpus, std::string_view counter) {
    std::uint64_t sum = 0;
    for (const PrefaultVcpu& vcpu : vcpus) {
        sum += vcpu.stats().value(counter).value_or(0);
    }
    return sum;
}

} // namespace

PrefaultVcpus::PrefaultVcpus(kvm::Vm& vm, Setup setup)
    : vm_(vm), setup_(std::move(setup)), vm_stats_(vm.stats()), host_(detect_second_level(vm)) {}

std::deque<PrefaultVcpu>& PrefaultVcpus::of(kvm::AddressSpace address_space) noexcept {
    return address_space == kvm::AddressSpace::kSmm ? smm_vcpus_ : vcpus_;
}

const std::deque<PrefaultVcpu>& PrefaultVcpus::of(kvm::AddressSpace address_space) const noexcept {
    return address_space == kvm::AddressSpace::kSmm ? smm_vcpus_ : vcpus_;
}

void PrefaultVcpus::add_scratch() {
    if (!scratch_) {
        const bool read_only = setup_.protect_scratch && host_.kind == SecondLevelKind::kShadow &&
                               vm_.extension(KVM_CAP_READONLY_MEM) != 0;
        scratch_.emplace(vm_, setup_.scratch_slot, setup_.scratch,
                         read_only ? Scratch::Protection::kReadOnly : Scratch::Protection::kWritable);
    }
    if (setup_.smm && !scratch_in_smm_) {
        scratch_->add_to(vm_, kvm::AddressSpace::kSmm);
        scratch_in_smm_ = true;
    }
}

void PrefaultVcpus::grow(unsigned count, const std::stop_token& stop) {
    count = std::min(count, setup_.most_vcpus);
    add_scratch();
    while (vcpus_.size() < count) {
        vcpus_.emplace_back(setup_.make_vcpu(), *scratch_);
    }
    while (setup_.smm && smm_vcpus_.size() < count) {
        smm_vcpus_.emplace_back(setup_.make_vcpu(), *scratch_, kvm::AddressSpace::kSmm);
    }
    if (scratch_mappings_ == 0 && !vcpus_.empty()) {
        scratch_mappings_ = count_scratch_mappings(stop);
    }
}

std::uint64_t PrefaultVcpus::used_scratch_pages() const noexcept {
    return scratch_->used_range().size / kSmallPageBytes;
}

GuestRange PrefaultVcpus::touched_part_of_scratch() const noexcept {
    // The scratch memslot must be mapped, too, so that its share of KVM's totals is known. On shadow paging only the
    // stub's page is touched: the tables are write-protected there, and a write to them makes KVM drop what it has
    // shadowed.
    GuestRange range = scratch_->used_range();
    if (host_.may_be_shadow()) {
        range.size = kSmallPageBytes;
    }
    return range;
}

TouchResult PrefaultVcpus::touch_scratch(PrefaultVcpu& vcpu, const std::stop_token& stop,
                                         const std::function<void()>& tick) {
    using Access = PrefaultVcpu::Access;
    TouchResult result{TouchResult::End::kStopped, ""};
    run_in_parallel({1, "prefault", {}, false, tick}, stop, [&](unsigned, const std::stop_token& crew_stop) {
        result = vcpu.touch(touched_part_of_scratch(), kSmallPageBytes, crew_stop,
                            scratch_->is_read_only() ? Access::kRead : Access::kWrite);
    });
    return result;
}

std::uint64_t PrefaultVcpus::count_scratch_mappings(const std::stop_token& stop) {
    if (!host_.may_be_shadow()) {
        return used_scratch_pages();
    }
    // On shadow paging KVM maps some neighbours of the stub's page as well. Only its counters say how many.
    scratch_->refresh(); // A guest may have written to it since it was made.
    const std::uint64_t before = mapped_pages(vm_stats_).pages_4k;
    if (!heed(touch_scratch(vcpus_.front(), stop))) {
        return 0;
    }
    const std::uint64_t after = mapped_pages(vm_stats_).pages_4k;
    return std::clamp<std::uint64_t>(after > before ? after - before : 0, 1, used_scratch_pages());
}

void PrefaultVcpus::begin(kvm::AddressSpace address_space, GuestAddress end, const std::stop_token& stop) {
    const bool smm = address_space == kvm::AddressSpace::kSmm;
    assert(!of(address_space).empty() && !(smm && host_.kind == SecondLevelKind::kShadow));
    scratch_->map_up_to(to_integer(end));
    scratch_->refresh();
    if (!host_.may_be_shadow()) {
        scratch_mappings_ = used_scratch_pages() * (smm_filled_ ? 2 : 1);
    }
    static_cast<void>(take_problem());
    held_ = false;
    const bool touched = heed(touch_scratch(of(address_space).front(), stop));
    if (smm) {
        smm_filled_ = true;
        if (touched) {
            scratch_mappings_ = 2 * used_scratch_pages(); // Both address spaces have the memslot now.
        }
    }
}

bool PrefaultVcpus::pre_fault_chunk(unsigned worker, GuestRange chunk, std::uint64_t mapping_bytes,
                                    const std::stop_token& stop) {
    return !held_ && heed(vcpus_[worker].pre_fault(chunk, mapping_bytes, stop));
}

bool PrefaultVcpus::touch_chunk(kvm::AddressSpace address_space, unsigned worker, GuestRange chunk,
                                std::uint64_t stride_bytes, const std::stop_token& stop) {
    return !held_ && heed(touch_persistently(of(address_space)[worker], chunk, stride_bytes, guest_runs_, stop));
}

bool PrefaultVcpus::heed(const TouchResult& result) {
    using End = TouchResult::End;
    if (result.end == End::kHeld) {
        held_ = true;
    }
    if (result.end == End::kFailed || result.end == End::kHeld) {
        has_failed_ = true;
        const std::lock_guard hold(problem_lock_);
        if (problem_.empty()) {
            problem_ = result.why;
        }
    }
    return result.end == End::kDone;
}

std::string PrefaultVcpus::take_problem() {
    const std::lock_guard hold(problem_lock_);
    return std::exchange(problem_, {});
}

std::uint64_t PrefaultVcpus::faults(kvm::AddressSpace address_space) const {
    return sum_of(of(address_space), "pf_fixed");
}

std::uint64_t PrefaultVcpus::exits() const {
    return sum_of(vcpus_, "exits");
}

MappedPages PrefaultVcpus::mapped_guest_memory() const {
    MappedPages mapped = mapped_pages(vm_stats_);
    mapped.pages_4k -= std::min(mapped.pages_4k, scratch_mappings_.load());
    return mapped;
}

void PrefaultVcpus::map_scratch_again() {
    if (has_failed_) { // A count is not worth running a vCPU again that a guest has led astray.
        return;
    }
    constexpr unsigned kMostTicks = 20; // ten a second
    scratch_->refresh();
    std::stop_source patience;
    unsigned ticks = 0;
    heed(touch_scratch(vcpus_.front(), patience.get_token(), [&] {
        if (++ticks == kMostTicks) {
            patience.request_stop();
        }
    }));
}

} // namespace vmm::prefault
