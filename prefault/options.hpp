// What a prefault can be asked for, and what it says of itself afterwards.
#pragma once

#include <climits>
#include <cstdint>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/host/export.hpp"
#include "kvm/host/guest_address.hpp"
#include "prefault/host/cpu_list.hpp"
#include "prefault/host/pin_kind.hpp"
#include "prefault/progress.hpp"
#include "prefault/second_level.hpp"

VMM_API_BEGIN
namespace vmm::prefault {

/// How the second level is filled.
enum class Method {
    kNone,  ///< not at all; in reports only
    kAuto,  ///< by ioctl where that leaves nothing to fault, else by touch; in options only
    kTouch, ///< dummy vCPUs write to every page
    kIoctl, ///< KVM_PRE_FAULT_MEMORY on each dummy vCPU
};

/// The name used on the command line and in the report: "none", "auto", "touch", "ioctl".
[[nodiscard]] std::string_view to_string(Method method) noexcept;

/// What shows that the second level is full.
enum class Proof {
    kNone,     ///< nothing
    kCounters, ///< KVM's counts of mappings cover what was to be filled
    kTouch,    ///< prefault vCPUs wrote to every 4 KiB of it and took no fault, by KVM's count
};

/// The name used in the report: "none", "counters", "touch".
[[nodiscard]] std::string_view to_string(Proof proof) noexcept;

/// How far pre-population goes.
enum class Scope {
    kNone, ///< nothing: the guest's first touch of a page populates it
    kHost, ///< host memory only, as other VMMs do
    kAll,  ///< host memory and the second level
};

/// The name used on the command line and in the report: "none", "host", "all".
[[nodiscard]] std::string_view to_string(Scope scope) noexcept;

/// The most workers that a prefault can have.
inline constexpr unsigned kMaxWorkers = 512;
/// For Options::workers: one worker for each CPU that workers may use, and at most kMaxWorkers.
inline constexpr unsigned kWorkerPerCpu = UINT_MAX;

struct Options {
    Scope scope = Scope::kAll;
    /// The parts of guest memory it is about, whole pages of the backing, not overlapping; empty: all of it.
    std::vector<GuestRange> ranges = {};
    Method method = Method::kAuto;
    /// Threads for the host side, and dummy vCPUs: 1 to kMaxWorkers, or kWorkerPerCpu. Of these, as many are used as
    /// there is work for.
    unsigned workers = kWorkerPerCpu;
    /// Where workers may run; empty: where the process may. Workers run on the CPUs of their memory's node.
    CpuList cpus = {};
    /// Beside a guest: workers at the lowest priority, and each chunk is populated on both sides before the next is
    /// begun, so that what is done serves the guest at once.
    bool background = false;
    /// Whether the second level of system management mode is filled, too. Needs KVM_CAP_X86_SMM, and EPT or NPT.
    bool smm = false;
    ProgressSink progress = {};
};

/// `options` with the number of workers that kWorkerPerCpu stands for here: the size of `options.cpus`, or the number
/// of CPUs that the calling thread may use. Any other number stays. Throws Error as usable_cpu_list().
[[nodiscard]] Options resolved(Options options);

/// The pin that kAuto stands for if `scope` is populated. Any other pin stays.
[[nodiscard]] Pin resolved(Pin pin, Scope scope) noexcept;

/// What was done, and what KVM's counters say of it.
struct Report {
    Scope scope = Scope::kNone;
    std::vector<GuestRange> ranges; ///< what was asked for; empty: all memory
    std::uint64_t bytes = 0;        ///< the size of what it was about
    Method method = Method::kNone;
    std::string method_reason; ///< why this method
    unsigned workers = 0;
    double host_seconds = 0;
    double pin_seconds = 0;
    double second_level_seconds = 0; ///< in the background: both sides
    double smm_seconds = 0;
    double total_seconds = 0;
    MappedPages mapped;         ///< of the guest's memory, all of it, when the run ended
    MappedPages smm_mapped;     ///< what the second level of system management mode added
    Proof proof = Proof::kNone; ///< what shows that the second level is full
    unsigned top_up_passes = 0; ///< passes over every 4 KiB that found something to map
    bool complete = false;      ///< what was asked for was done, and where the scope is kAll it is proven
    std::string problem;        ///< why it is not complete; empty if it is, or if a stop was requested
};

} // namespace vmm::prefault
VMM_API_END
