#include "prefault/second_level.hpp"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/host/stopwatch.hpp"
#include "prefault/host/populate.hpp"
#include "prefault/host/workforce.hpp"
#include "prefault/method_choice.hpp"
#include "prefault/plan.hpp"

namespace vmm::prefault {

namespace {

using Clock = std::chrono::steady_clock;

/// The first pass finds what is missing because a mapping is smaller than expected. The second finds what was taken
/// away meanwhile. The last shows that nothing is missing any more.
constexpr unsigned kMostPasses = 3;

std::uint64_t difference(std::uint64_t after, std::uint64_t before) {
    return after > before ? after - before : 0;
}

MappedPages difference(const MappedPages& after, const MappedPages& before) {
    return {difference(after.pages_4k, before.pages_4k), difference(after.pages_2m, before.pages_2m),
            difference(after.pages_1g, before.pages_1g)};
}

std::vector<GuestRange> ranges_of(std::span<const PlacedRange> placed) {
    std::vector<GuestRange> ranges;
    for (const PlacedRange& piece : placed) {
        ranges.push_back(piece.range);
    }
    return ranges;
}

GuestAddress end_of(std::span<const PlacedRange> placed) {
    GuestAddress end{};
    for (const PlacedRange& piece : placed) {
        end = std::max(end, piece.range.end());
    }
    return end;
}

} // namespace

/// One call of fill(). Holds what its stages share.
class SecondLevel::Fill {
  public:
    Fill(SecondLevel& level, const Options& options, MethodChoice method, const std::stop_token& stop)
        : memory_(level.memory_), pins_(level.pins_), vcpus_(level.vcpus_), options_(options),
          method_(std::move(method)), stop_(stop),
          ranges_(options.ranges.empty() ? level.placement_.ranges
                                         : intersection(level.placement_.ranges, options.ranges)),
          mapping_bytes_(largest_page_bytes(memory_.page_size())) {
        workforce_.workers = options.scope == Scope::kAll ? std::min(options.workers, vcpus_.count()) : options.workers;
        workforce_.cpus = options.cpus;
        workforce_.node_cpus = level.placement_.node_cpus;
        workforce_.low_priority = options.background;
        workforce_.progress = options.progress;
        report_.scope = options.scope;
        report_.ranges = options.ranges;
        report_.bytes = total_bytes(ranges_);
        report_.workers = options.scope == Scope::kNone ? 0 : workforce_.workers;
    }

    Report run() {
        const auto start = Clock::now();
        // Long-term pins are made in large pieces, and must exist before the second level is filled, because pinning
        // may move pages. So a fill with such pins runs in stages, even in the background.
        const bool piecewise = options_.background && options_.scope == Scope::kAll && pins_.kind() != Pin::kLongterm;
        report_.complete = piecewise ? run_in_pieces() : run_in_stages();
        report_.complete = report_.complete && (!options_.smm || options_.scope != Scope::kAll || fill_smm());
        report_.total_seconds = seconds_since(start);
        return std::move(report_);
    }

  private:
    bool run_in_pieces() {
        const bool pin_last = pins_what_exists();
        return (pin_last || pin()) && fill_in_pieces() && (!pin_last || pin());
    }

    bool run_in_stages() {
        const bool populates = options_.scope != Scope::kNone || pins_.kind() == Pin::kLongterm;
        const bool pin_last = populates && pins_what_exists();
        return (pin_last || pin()) && (!populates || populate_host_side()) && (!pin_last || pin()) &&
               (options_.scope != Scope::kAll || fill());
    }

    /// True if pages must exist before they are pinned. A long-term pin pins only existing pages. mlock of empty memory
    /// takes no time, because the worker that makes a page also locks it, while one thread must walk all pages that
    /// exist. But for pages of a pool mlock2() would make them all with one thread instead (mm/mlock.c, mlock_fixup()).
    [[nodiscard]] bool pins_what_exists() const noexcept {
        return pins_.kind() == Pin::kLongterm || is_from_pool(memory_.page_size());
    }

    bool populate_host_side() {
        const auto start = Clock::now();
        const bool populated = populate_host(memory_, ranges_, workforce_, stop_);
        report_.host_seconds = seconds_since(start);
        return populated;
    }

    bool pin() {
        const auto start = Clock::now();
        const std::vector<GuestRange> ranges = ranges_of(ranges_);
        std::atomic<std::uint64_t> done_bytes{0};
        const bool pinned = pins_.add(memory_, ranges, workforce_.workers, stop_,
                                      [&](std::uint64_t bytes) { done_bytes.fetch_add(bytes); });
        report_.pin_seconds = seconds_since(start);
        if (workforce_.progress && pins_.kind() != Pin::kNone) {
            workforce_.progress(
                {Stage::kPin, pinned ? report_.bytes : done_bytes.load(), report_.bytes, report_.pin_seconds});
        }
        return pinned;
    }

    bool fill() {
        const auto start = Clock::now();
        begin();
        const std::uint64_t chunk_bytes = Plan::chunk_bytes_for(report_.bytes, workforce_.workers, mapping_bytes_);
        for_each_chunk(ranges_, chunk_bytes, workforce_, Stage::kSecondLevel, "prefault", stop_,
                       [&](unsigned worker, GuestRange chunk, const std::stop_token& stop) {
                           return fill_chunk(worker, chunk, stop);
                       });
        touch_after_ioctl();
        return finish(start);
    }

    /// Populates both sides of each chunk before the next one, so that finished chunks serve a running guest at once.
    bool fill_in_pieces() {
        const auto start = Clock::now();
        begin();
        const std::uint64_t chunk_bytes = host_chunk_bytes(memory_.page_size(), report_.bytes, workforce_.workers);
        for_each_chunk(ranges_, chunk_bytes, workforce_, Stage::kSecondLevel, "prefault", stop_,
                       [&](unsigned worker, GuestRange chunk, const std::stop_token& stop) {
                           populate_chunk(memory_, chunk, stop);
                           return fill_chunk(worker, chunk, stop);
                       });
        touch_after_ioctl();
        return finish(start);
    }

    void begin() {
        report_.method = method_.method;
        report_.method_reason = method_.reason;
        vcpus_.begin(kvm::AddressSpace::kNormal, end_of(ranges_), stop_);
    }

    bool fill_chunk(unsigned worker, GuestRange chunk, const std::stop_token& stop) {
        return method_.method == Method::kTouch
                   ? vcpus_.touch_chunk(kvm::AddressSpace::kNormal, worker, chunk, mapping_bytes_, stop)
                   : vcpus_.pre_fault_chunk(worker, chunk, mapping_bytes_, stop);
    }

    /// Fills the table that this host's own host keeps. The ioctl for all memory comes first: if that host has seen
    /// accesses through a table of this host, it watches the table, and each further entry costs several exits
    /// (docs/prefault.md). Every 4 KiB are touched, because the size of that host's mappings is not known here.
    void touch_after_ioctl() {
        if (method_.method == Method::kIoctlThenTouch && !stop_.stop_requested() && !vcpus_.are_held()) {
            touch_all(kvm::AddressSpace::kNormal, kSmallPageBytes);
        }
    }

    bool finish(Clock::time_point start) {
        report_.proof = verify(kvm::AddressSpace::kNormal, {}, report_.mapped);
        report_.second_level_seconds = seconds_since(start);
        return report_.proof != Proof::kNone;
    }

    bool fill_smm() {
        const auto start = Clock::now();
        vcpus_.begin(kvm::AddressSpace::kSmm, end_of(ranges_), stop_);
        const MappedPages before = vcpus_.mapped_guest_memory();
        touch_all(kvm::AddressSpace::kSmm, mapping_bytes_);
        const Proof proof = verify(kvm::AddressSpace::kSmm, before, report_.smm_mapped);
        report_.smm_seconds = seconds_since(start);
        return proof != Proof::kNone;
    }

    /// Fills what is missing by touching every 4 KiB, until KVM's counters or a pass without a fault show that nothing
    /// is missing. Sets `mapped` to what KVM has mapped beyond `before`.
    Proof verify(kvm::AddressSpace address_space, const MappedPages& before, MappedPages& mapped) {
        std::string problem = vcpus_.take_problem();
        std::uint64_t faults = 0; // in the last pass
        for (unsigned pass = 0; !stop_.stop_requested(); ++pass) {
            mapped = difference(vcpus_.mapped_guest_memory(), before);
            if (problem.empty() && counters_tell(address_space, pass) && mapped.bytes() >= report_.bytes) {
                return Proof::kCounters;
            }
            if (problem.empty() && pass > 0 && faults == 0) {
                return Proof::kTouch;
            }
            if (pass == kMostPasses || vcpus_.are_held()) {
                give_up(std::move(problem));
                return Proof::kNone;
            }
            const std::uint64_t faults_before = vcpus_.faults(address_space);
            touch_all(address_space, kSmallPageBytes);
            faults = difference(vcpus_.faults(address_space), faults_before);
            report_.top_up_passes += faults != 0 ? 1 : 0;
            problem = vcpus_.take_problem();
        }
        mapped = difference(vcpus_.mapped_guest_memory(), before);
        return Proof::kNone;
    }

    /// True if KVM's counters prove this fill. They count for the whole VM, so the fill must be about all memory, and
    /// nothing else may be mapped: no second address space, and on shadow paging no page tables of a running guest. If
    /// memory was mapped without an access, its first access must also not fault, or a pass must have touched every
    /// page before.
    [[nodiscard]] bool counters_tell(kvm::AddressSpace address_space, unsigned passes) const {
        const bool tell_of_this = address_space == kvm::AddressSpace::kNormal && options_.ranges.empty() &&
                                  !vcpus_.have_filled_smm() && !(vcpus_.guest_runs() && vcpus_.host().may_be_shadow());
        return tell_of_this &&
               (passes > 0 || method_.method != Method::kIoctl || vcpus_.host().accessed_dirty.value_or(false));
    }

    /// If no guest runs, nothing can have led the vCPUs astray. A failure is then an Error.
    void give_up(std::string problem) {
        if (!vcpus_.guest_runs() && !problem.empty()) {
            throw Error("cannot fill the second level: " + problem);
        }
        report_.problem = problem.empty() ? "mappings are taken away as fast as they are made" : std::move(problem);
    }

    void touch_all(kvm::AddressSpace address_space, std::uint64_t stride_bytes) {
        const Stage stage = address_space == kvm::AddressSpace::kSmm ? Stage::kSmm : Stage::kSecondLevel;
        const std::uint64_t chunk_bytes = Plan::chunk_bytes_for(report_.bytes, workforce_.workers, stride_bytes);
        vcpus_.refresh_scratch();
        for_each_chunk(ranges_, chunk_bytes, workforce_, stage, "prefault", stop_,
                       [&](unsigned worker, GuestRange chunk, const std::stop_token& stop) {
                           return vcpus_.touch_chunk(address_space, worker, chunk, stride_bytes, stop);
                       });
    }

    const GuestMemory& memory_;
    PinnedMemory& pins_;
    PrefaultVcpus& vcpus_;
    const Options& options_;
    MethodChoice method_;
    const std::stop_token& stop_;
    std::vector<PlacedRange> ranges_;
    std::uint64_t mapping_bytes_; ///< the largest mapping that the backing allows
    Workforce workforce_;
    Report report_;
};

SecondLevel::SecondLevel(kvm::Vm& vm, const GuestMemory& memory, const Placement& placement, PinnedMemory& pins,
                         PrefaultVcpus::Setup setup)
    : vm_(vm), memory_(memory), placement_(placement), pins_(pins), has_smm_(setup.smm), vcpus_(vm, std::move(setup)) {}

void SecondLevel::prepare(unsigned workers, const std::stop_token& stop) {
    const std::uint64_t mapping_bytes = largest_page_bytes(memory_.page_size());
    vcpus_.grow(Plan::useful_workers(memory_.size_bytes(), workers, mapping_bytes), stop);
}

Report SecondLevel::fill(const Options& options, const std::stop_token& stop) {
    const Options wanted = resolved(options);
    if (wanted.smm && !has_smm_) {
        throw Error("cannot fill the second level of system management mode: this VM was made without it "
                    "(Config::prefault.smm)");
    }
    std::vector<GuestRange> ram;
    for (const MemoryRegion& region : memory_.regions()) {
        ram.push_back(region.range);
    }
    check_options(wanted, ram, memory_.page_size());
    MethodChoice method;
    if (wanted.scope == Scope::kAll) {
        method = choose_method(wanted.method, vcpus_.host(), vm_.extension(KVM_CAP_PRE_FAULT_MEMORY) != 0);
        prepare(wanted.workers, stop);
    }
    return Fill(*this, wanted, std::move(method), stop).run();
}

void SecondLevel::begin_pieces(Method method, const std::stop_token& stop) {
    const bool can_pre_fault = vm_.extension(KVM_CAP_PRE_FAULT_MEMORY) != 0;
    piece_method_ = choose_method(method, vcpus_.host(), can_pre_fault).method;
    prepare(1, stop);
    vcpus_.begin(kvm::AddressSpace::kNormal, end_of(placement_.ranges), stop);
    static_cast<void>(vcpus_.take_problem()); // A later fill() proves the result.
}

bool SecondLevel::fill_piece(GuestRange piece, const std::stop_token& stop) {
    assert(piece_method_ != Method::kNone);
    const std::uint64_t page_bytes = certain_page_bytes(memory_.page_size());
    const bool mapped = piece_method_ == Method::kTouch || vcpus_.pre_fault_chunk(0, piece, page_bytes, stop);
    return mapped && (piece_method_ == Method::kIoctl ||
                      vcpus_.touch_chunk(kvm::AddressSpace::kNormal, 0, piece,
                                         piece_method_ == Method::kTouch ? page_bytes : kSmallPageBytes, stop));
}

GuestAddress SecondLevel::page_tables() const noexcept {
    return vcpus_.count() != 0 ? vcpus_.scratch().page_tables() : GuestAddress{};
}

MappedPages SecondLevel::mapped_at_rest() {
    if (vcpus_.count() != 0) {
        vcpus_.map_scratch_again();
    }
    return mapped();
}

} // namespace vmm::prefault
