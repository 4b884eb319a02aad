// What a machine is to be.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvm/guest_memory.hpp"
#include "prefault/cpu_list.hpp"
#include "prefault/huge_page_pool.hpp"
#include "prefault/numa.hpp"
#include "prefault/pin.hpp"
#include "prefault/prefault.hpp"
#include "vmm/log.hpp"
#include "vmm/stop_request.hpp"
#include "vmm/watch.hpp"

namespace vmm {

/// Where the guest's serial port is connected. The descriptors are loans that outlive the machine; -1: not connected.
/// The output descriptor's flags are left as they are, and a reader that does not read never stalls the guest.
struct SerialConfig {
    int input_fd = -1;
    int output_fd = -1;
    /// Whether Ctrl-A is a prefix for commands to us (x: stop, h: help, Ctrl-A: itself). For a person at a terminal.
    bool escape_keys = false;
    /// What Ctrl-A h does. Called on the thread of Machine::run(). Empty: nothing.
    std::function<void()> show_help;
};

/// When memory is populated.
enum class PrefaultWhen {
    kBefore,     ///< by Machine::prefault(), before the guest starts
    kBackground, ///< by Machine::run(), at low priority beside the guest, which starts at once
};

/// The name used on the command line and in the report: "before", "background".
[[nodiscard]] std::string_view to_string(PrefaultWhen when) noexcept;

/// Everything a Machine is made from. A value; the defaults are those of the command line.
struct Config {
    /// An ELF vmlinux, a bzImage or any PVH kernel; empty: the guest built into this program.
    std::string kernel_path;
    std::string initrd_path; ///< empty: none
    /// Appended to kDefaultCommandLine.
    std::string command_line;

    std::uint64_t memory_bytes = 512 * kMiB; ///< a multiple of the page size, at least kMinMemoryBytes
    PageSize page_size = PageSize::kThp;
    unsigned vcpus = 1; ///< 1 to kMaxVcpus
    /// By CPU list: vCPU i runs on the CPU at place i, and from the front again where there are more vCPUs than CPUs.
    /// Empty: where the process may run; with `numa` split, on the vCPU's node.
    prefault::CpuList vcpu_cpus;
    /// On which of the host's nodes guest memory lies.
    prefault::NumaPolicy numa;
    /// Whether the pools of huge pages are raised by what is missing, and lowered again at the end. Needs root.
    bool reserve_huge_pages = false;
    prefault::Pin pin = prefault::Pin::kNone;
    /// `background` follows from `prefault_when`.
    prefault::Options prefault{.scope = prefault::Scope::kNone};
    PrefaultWhen prefault_when = PrefaultWhen::kBefore;
    /// Is told once a second how the second level is doing while the guest runs. Empty: nobody.
    WatchSink watch;
    SerialConfig serial;
    LogSink log;
    /// A request to stop that exists before the machine does, so that it is heard during construction, too. Null: the
    /// machine has its own.
    std::shared_ptr<StopRequest> stop;

    static constexpr std::uint64_t kMinMemoryBytes = 2 * kMiB;
    static constexpr unsigned kMaxVcpus = 254; ///< the ids that xAPIC mode can name
    static constexpr unsigned kMaxPrefaultWorkers = 512;
    static constexpr const char* kDefaultCommandLine = "console=ttyS0";
};

/// Throws Error where `config` asks for what cannot be, on any host or on this one: sizes, counts, memory, ranges,
/// nodes, CPUs, the pools of huge pages, the limit on locked memory. Creates nothing.
void validate(const Config& config);

/// Throws Error where there cannot be so many workers, or not on those CPUs.
void validate_workers(const prefault::Options& options);

/// Throws Error unless each of `ranges` is whole pages of RAM and no two overlap. `ram` are its regions.
void validate_ranges(std::span<const GuestRange> ranges, std::span<const GuestRange> ram, PageSize page_size);

/// Throws Error where this host does not have `bytes` more for the guest of `config`.
void validate_more_memory(const Config& config, std::uint64_t bytes);

/// The huge pages guest memory of `config` needs, by node.
[[nodiscard]] prefault::HugePageDemand huge_page_demand(const Config& config, const prefault::NumaTopology& topology);

} // namespace vmm
