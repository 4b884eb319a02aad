// The options of a prefault.
#pragma once

#include <array>
#include <climits>
#include <span>
#include <string_view>
#include <vector>

#include "kvm/host/export.hpp"
#include "kvm/host/guest_address.hpp"
#include "kvm/host/guest_memory.hpp"
#include "prefault/host/cpu_list.hpp"
#include "prefault/host/pin_kind.hpp"
#include "prefault/progress.hpp"

VMM_API_BEGIN
namespace vmm::prefault {

/// How the second level is filled.
enum class Method {
    kNone,  ///< not at all; in reports only
    kAuto,  ///< the quickest method that leaves nothing to fault on this host; in options only
    kTouch, ///< prefault vCPUs write to every page
    kIoctl, ///< KVM_PRE_FAULT_MEMORY on each prefault vCPU
    /// First the ioctl for all memory, then prefault vCPUs write to every 4 KiB of it. This is for a host that is a
    /// guest itself: its own host keeps one more table for this host's guests, and only accesses fill that table.
    kIoctlThenTouch,
};

/// Those that a prefault can be asked for, in the order in which help lists them.
inline constexpr std::array kMethods{Method::kAuto, Method::kTouch, Method::kIoctl, Method::kIoctlThenTouch};

/// The name used on the command line and in the report: "none", "auto", "touch", "ioctl", "ioctl+touch".
[[nodiscard]] std::string_view to_string(Method method) noexcept;

/// How far pre-population goes.
enum class Scope {
    kNone, ///< nothing: the guest's first touch of a page populates it
    kHost, ///< host memory only, as other VMMs do
    kAll,  ///< host memory and the second level
};

/// All of them, in the order in which help lists them. The C API numbers them by it.
inline constexpr std::array kScopes{Scope::kNone, Scope::kHost, Scope::kAll};

/// The name used on the command line and in the report: "none", "host", "all".
[[nodiscard]] std::string_view to_string(Scope scope) noexcept;

/// The most workers that a prefault can have.
inline constexpr unsigned kMaxWorkers = 512;
/// For Options::workers: one worker for each CPU that workers may use, but at most kMaxWorkers.
inline constexpr unsigned kWorkerPerCpu = UINT_MAX;

/// What a prefault must do. A value.
struct Options {
    Scope scope = Scope::kAll;
    /// The parts of guest memory to prefault. They must be whole pages of the backing and must not overlap; empty means
    /// all memory.
    std::vector<GuestRange> ranges = {};
    Method method = Method::kAuto;
    /// The number of threads for the host side, and of prefault vCPUs: 1 to kMaxWorkers, or kWorkerPerCpu. Only as many
    /// are used as there is work for.
    unsigned workers = kWorkerPerCpu;
    /// The CPUs that workers may use; empty: those that the process may use. Each worker runs on those of them that are
    /// near its memory.
    CpuList cpus = {};
    /// Whether workers have the lowest priority, so that they do not disturb a running guest. Each chunk is then
    /// populated on both sides before the next one begins, so that finished chunks serve the guest at once.
    bool background = false;
    /// Whether to fill the second level of system management mode, too. Needs KVM_CAP_X86_SMM, and EPT or NPT.
    bool smm = false;
    ProgressSink progress = {};
};

/// Throws Error unless `options` are valid on every host for a guest whose RAM is `ram`, backed by pages of
/// `page_size`: the number of workers is possible, and the ranges are whole pages of RAM that do not overlap.
void check_option_values(const Options& options, std::span<const GuestRange> ram, PageSize page_size);

/// Like check_option_values(), but also throws Error unless this process may use the CPUs. SecondLevel::fill() checks
/// this; call it if the answer is needed before there is a VM.
void check_options(const Options& options, std::span<const GuestRange> ram, PageSize page_size);

/// Returns `options` with the number of workers that kWorkerPerCpu means here: the size of `options.cpus`, or the
/// number of CPUs that the calling thread may use. Any other number stays. Throws Error as usable_cpu_list() does.
[[nodiscard]] Options resolved(Options options);

/// The pin that kAuto means if `scope` is populated. Any other pin stays.
[[nodiscard]] Pin resolved(Pin pin, Scope scope) noexcept;

} // namespace vmm::prefault
VMM_API_END
