// Pre-population as a whole: host side, pin, second level, proof.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <stop_token>
#include <string_view>

#include "kvm/guest_memory.hpp"
#include "kvm/vm.hpp"
#include "prefault/dummy_vcpu.hpp"
#include "prefault/pin.hpp"
#include "prefault/scratch.hpp"
#include "prefault/second_level.hpp"

namespace vmm::prefault {

/// How far pre-population goes.
enum class Scope {
    kNone, ///< nothing: the guest's first touch of a page populates it
    kHost, ///< host memory only, as other VMMs do
    kAll,  ///< host memory and the second level
};

/// How the second level was filled.
enum class Method {
    kNone,
    kTouch, ///< dummy vCPUs wrote to every page
};

[[nodiscard]] std::string_view to_string(Scope scope) noexcept;
[[nodiscard]] std::string_view to_string(Method method) noexcept;

struct Options {
    Scope scope = Scope::kAll;
    Pin pin = Pin::kMlock;
    /// Threads for the host side, and dummy vCPUs; at least 1. Of these, as many are used as there is work for.
    unsigned workers = 1;
};

/// What was done, and what KVM's counters say of it.
struct Report {
    Scope scope = Scope::kNone;
    Method method = Method::kNone;
    unsigned workers = 0;
    double host_seconds = 0;
    double pin_seconds = 0;
    double second_level_seconds = 0;
    double total_seconds = 0;
    MappedPages mapped;         ///< of the guest's memory, all of it, when the run ended
    unsigned top_up_passes = 0; ///< further passes over every 4 KiB, because the counters were short
    bool complete = false;      ///< what `scope` asked for was done, and where it is kAll the counters cover all memory
};

/// The dummies and their scratch memslot, for as long as the VM lives. fill() may be used again at any time.
///
/// Threads: one at a time; the guest may run meanwhile.
class SecondLevelFiller {
  public:
    struct Place {
        std::uint32_t memslot;   ///< a free slot number for the scratch memslot
        Scratch::Layout scratch; ///< where it lies
        unsigned first_vcpu_id;  ///< the lowest id of a dummy: above every real vCPU's
        SecondLevelKind kind;    ///< what this host has
    };

    /// Creates `workers` dummies. Before the guest runs: on shadow paging, what the scratch slot adds to KVM's counts
    /// is found out by looking at them. Throws Error.
    SecondLevelFiller(kvm::Vm& vm, const Place& place, std::span<const kvm_cpuid_entry2> cpuid, unsigned workers);

    /// What the page tables of the dummies are; for a guest that adopts them.
    [[nodiscard]] const Scratch& scratch() const noexcept { return scratch_; }

    /// Fills the second level of all of `memory` and notes workers, mapped, top-ups and completeness in `report`.
    /// Returns early, incomplete, if `stop` is requested. Throws Error.
    void fill(const GuestMemory& memory, Report& report, const std::stop_token& stop);

  private:
    [[nodiscard]] std::uint64_t count_scratch_mappings();
    void touch_scratch(const std::stop_token& stop);
    /// Touches each of `ranges` at the stride that stands at its place in `strides`, in bytes.
    bool touch_all(std::span<const GuestRange> ranges, std::span<const std::uint64_t> strides,
                   const std::stop_token& stop);
    [[nodiscard]] MappedPages mapped_guest_memory() const;

    kvm::Stats vm_stats_;
    SecondLevelKind kind_;
    Scratch scratch_;
    std::deque<DummyVcpu> dummies_; ///< a deque: a vCPU's address never changes
    /// How many mappings of KVM's count are the scratch slot's, small pages all.
    std::uint64_t scratch_mappings_ = 0;
};

/// Runs pre-population over all of `memory`: host side, pin, second level, verification. `filler` is needed for
/// Scope::kAll only. If `stop` is requested the report says what was done, with `complete` false. Throws Error.
Report run(const GuestMemory& memory, SecondLevelFiller* filler, const Options& options,
           const std::stop_token& stop = {});

} // namespace vmm::prefault
