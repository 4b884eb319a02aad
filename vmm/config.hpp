// The configuration of a machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/host/export.hpp"
#include "kvm/host/guest_memory.hpp"
#include "prefault/host/cpu_list.hpp"
#include "prefault/host/numa_policy.hpp"
#include "prefault/host/pin_kind.hpp"
#include "prefault/kept.hpp"
#include "prefault/options.hpp"
#include "vmm/device.hpp"         // IWYU pragma: export
#include "vmm/device_configs.hpp" // IWYU pragma: export
#include "vmm/limits.hpp"
#include "vmm/log.hpp"
#include "vmm/migration.hpp" // IWYU pragma: export
#include "vmm/snapshot.hpp"  // IWYU pragma: export
#include "vmm/stop_request.hpp"
#include "vmm/watch.hpp"

VMM_API_BEGIN
namespace vmm {

namespace prefault {
struct HugePageDemand;
struct NumaTopology;
} // namespace prefault

/// The moment at which memory is populated.
enum class PrefaultWhen {
    kBefore,     ///< Machine::prefault() does it, before the guest starts
    kBackground, ///< Machine::run() does it, at low priority, while the guest runs
};

/// The name used on the command line and in the report: "before", "background".
[[nodiscard]] std::string_view to_string(PrefaultWhen when) noexcept;

/// Whether threads that a guest can reach are confined (docs/threat-model.md).
enum class SandboxMode {
    kOff,
    kLog, ///< what would be refused is done, and the kernel writes it to its audit log
    kOn,  ///< what is refused raises SIGSYS, which ends the process unless the program has a handler
};

/// The name used on the command line: "off", "log", "on".
[[nodiscard]] std::string_view to_string(SandboxMode mode) noexcept;

/// The way in which the guest is told of its hardware.
enum class HardwareDescription {
    kAcpi, ///< ACPI tables
    kFdt,  ///< a device tree, for kernels that read one (docs/devices.md)
    kBoth,
};

/// The name used on the command line: "acpi", "fdt", "both".
[[nodiscard]] std::string_view to_string(HardwareDescription hardware) noexcept;

/// How the guest reaches its virtio devices.
enum class VirtioTransport {
    kMmio, ///< registers in memory, with an interrupt line each (virtio 1.2, 4.2); at most 17 devices
    kPci,  ///< functions on a PCI bus, with message-signalled interrupts (virtio 1.2, 4.1); at most 31 devices
};

/// The name used on the command line: "mmio", "pci".
[[nodiscard]] std::string_view to_string(VirtioTransport transport) noexcept;

/// Memory that is taken out of a pool of warm memory (MemoryPool, `vmm pool`) instead of being made: its pages exist
/// and are zero, so that only the second level is left to be filled. The pool has pages of Config::page_size.
struct MemoryFrom {
    std::string path{}; ///< the pool's unix socket, at most 107 bytes
    /// Whether ordinary memory takes the place of what the pool has not, which is logged. Otherwise the machine is
    /// refused, and the pool keeps what it has.
    bool fallback = false;

    /// Throws Error if it asks for what no host can give.
    void check() const;

    friend bool operator==(const MemoryFrom&, const MemoryFrom&) = default;
};

/// Everything a Machine is made from. It is a value, and its defaults are those of the command line:
///
///     Config config;                                  // the built-in guest, with 512 MiB and one vCPU
///     config.kernel_path = "vmlinux";
///     config.vcpus = 4;
///     config.prefault.scope = prefault::Scope::kAll;  // with all CPUs, and memory is locked
///     config.disks.push_back({.path = "disk.img"});
///     validate(config);                               // Machine's constructor does this, too
// NOLINTNEXTLINE(clang-analyzer-optin.performance.Padding): initialisers name the members in this order.
struct Config {
    /// An ELF vmlinux, a bzImage or any PVH kernel. If it is empty, the guest that is built into the library runs.
    std::string kernel_path;
    std::string initrd_path; ///< empty: none
    /// The kernel and the initrd in memory, instead of in files; null: not there. Copies of the configuration share the
    /// bytes. Nobody may change them before the machine's constructor has returned; the machine lets go of them then.
    std::shared_ptr<const std::vector<std::byte>> kernel_image{};
    std::shared_ptr<const std::vector<std::byte>> initrd_image{};
    /// The kernel command line. It is appended to kDefaultCommandLine.
    std::string command_line;
    /// The snapshot that the machine goes on from, instead of booting; nothing: it boots. Then there is no kernel, no
    /// initrd and no command line.
    std::optional<RestoreFrom> restore{};

    /// The guest that the machine goes on with, which has announced itself (IncomingGuest::wait()), instead of booting;
    /// null: it boots. Then there is no kernel, no initrd and no command line, either. One machine is made of it.
    std::shared_ptr<IncomingGuest> incoming{};

    std::uint64_t memory_bytes = limits::kDefaultMemoryBytes; ///< a multiple of the page size, at least kMinMemoryBytes
    /// Up to how much memory the guest can be given while it runs (Machine::set_memory(), virtio-mem); 0: it has what
    /// it begins with. At least `memory_bytes`; what it grows by is whole blocks of 2 MiB, or larger ones if it is more
    /// than 16 GiB or `page_size` is 1G.
    std::uint64_t memory_max_bytes = 0;
    PageSize page_size = PageSize::kThp;
    std::optional<MemoryFrom> memory_from{}; ///< nothing: memory is made
    /// Whether memory is a file in memory (memfd_create(2)), which another process of this host can take over without
    /// a copy (Machine::migrate() to a unix socket). What that costs: docs/migration.md.
    bool memory_shared = false;
    /// What threads of vCPUs and of virtio devices may do. They are confined one by one when they begin; no other
    /// thread of the process is. A custom device is called on threads of vCPUs, which may make only the calls that are
    /// listed in vmm/sandbox/filters/thread_rules.cpp.
    SandboxMode sandbox = SandboxMode::kOff;
    unsigned vcpus = 1; ///< 1 to kMaxVcpus
    /// The features of the host's processors that the guest is offered (docs/cpu.md). It begins with "host", or with a
    /// level of the x86-64 psABI, which is the same on every host: "x86-64-v1" to "x86-64-v4". Features that are taken
    /// away or required follow, by their names in /proc/cpuinfo: "host,-x2apic,-avx512f", "x86-64-v2,+aes".
    std::string cpu = "host";
    bool nested = false; ///< whether the guest may have guests of its own (VMX or SVM); the host has to offer it
    HardwareDescription hardware = HardwareDescription::kAcpi;
    /// How the guest reaches its virtio devices. A guest that goes on (`restore`, `incoming`) reaches them as before.
    /// The default takes half of the exits that kMmio takes (docs/benchmarks.md), and devices can come and go.
    VirtioTransport transport = VirtioTransport::kPci;
    /// The CPUs that vCPUs run on: vCPU i runs on the CPU at place i of the list, which begins again at its end. If it
    /// is empty, a vCPU runs where the process may; if `numa` is split, it runs on its node.
    prefault::CpuList vcpu_cpus;
    /// The CPUs that the threads of virtio devices run on. If it is empty, they run where the process may. A doorbell
    /// that wakes a device on the CPU of a vCPU takes that from it: keep the two apart if `vcpu_cpus` are for vCPUs
    /// alone.
    prefault::CpuList device_cpus;
    /// The nodes of the host on which guest memory lies.
    prefault::NumaPolicy numa;
    /// Whether the pools of huge pages are raised by what is missing, and lowered again at the end. Needs root.
    bool reserve_huge_pages = false;
    /// How guest memory is kept resident. By default it is locked if anything is populated.
    prefault::Pin pin = prefault::Pin::kAuto;
    /// What Machine::prefault() populates, and how. `background` follows from `prefault_when`.
    prefault::Options prefault{.scope = prefault::Scope::kNone};
    PrefaultWhen prefault_when = PrefaultWhen::kBefore;
    /// Whether the second level is kept full while the guest runs: what the kernel takes away is noticed, told and
    /// populated again, at low priority (docs/prefault.md). Needs the scope kAll, of all memory.
    bool prefault_keep = false;
    /// The time between two looks at KVM's counters, in milliseconds: kMinKeepEveryMs to kMaxKeepEveryMs.
    unsigned keep_every_ms = limits::kDefaultKeepEveryMs;
    /// Is told what was lost and made good, on the keeper's thread. It may be empty.
    prefault::KeptSink kept;
    /// Is given a sample of the second level once a second while the guest runs. It may be empty.
    WatchSink watch;
    CharacterConfig serial;
    std::optional<CharacterConfig> console; ///< a virtio console, hvc0 in Linux
    std::vector<DiskConfig> disks;          ///< /dev/vda, /dev/vdb, ... in Linux
    std::vector<NetConfig> nets;
    std::optional<VsockConfig> vsock;
    std::optional<BalloonConfig> balloon;
    std::vector<DeviceConfig> devices; ///< the embedding program's own
    bool rng = false;                  ///< whether the guest has a source of entropy (virtio-rng)
    LogSink log;
    /// Is told that the guest runs, on the thread of Machine::run(). It should not hold that up. What it throws ends
    /// the run and comes out of run().
    std::function<void()> started;
    /// Is told that a prefault in the background has filled the second level, on that prefault's thread.
    std::function<void()> filled;
    /// Is told how the guest ended, when the report is complete, on the thread of Machine::run(). It is not called if
    /// run() throws.
    std::function<void(ExitReason)> ended;
    /// A request to stop that exists before the machine does. If a stop is requested during construction, the
    /// constructor stops waiting and throws Error. If it is null, the machine has a request of its own.
    std::shared_ptr<StopRequest> stop;

    static constexpr std::uint64_t kMinMemoryBytes = limits::kMinMemoryBytes;
    static constexpr unsigned kMaxVcpus = limits::kMaxVcpus;
    static constexpr unsigned kMaxPrefaultWorkers = prefault::kMaxWorkers;
    static constexpr unsigned kMinKeepEveryMs = limits::kMinKeepEveryMs;
    static constexpr unsigned kMaxKeepEveryMs = limits::kMaxKeepEveryMs;
    static constexpr const char* kDefaultCommandLine = "console=ttyS0";
};

/// Whether the guest's memory exists already, and is handed over by another process (Config::incoming).
[[nodiscard]] bool is_handed_over(const Config& config) noexcept;

/// Whether the guest's memory comes while it runs (RestoreMode::kLazy), or may (MigrationOptions::post_copy_after).
[[nodiscard]] bool restores_lazily(const Config& config) noexcept;

/// `config` with its derived defaults filled in: prefault::kWorkerPerCpu becomes the number of CPUs that workers may
/// use, and Pin::kAuto becomes kMlock if anything is populated, else kNone. An explicit choice stays. If the guest's
/// memory comes while it runs, prefault_when is kBackground. A Machine does this with the configuration it is given.
/// Throws Error as prefault::usable_cpu_list().
[[nodiscard]] Config resolved(Config config);

/// Throws Error if `config` asks for what cannot be on any host: texts, sizes, counts, ranges, and choices that exclude
/// each other. Looks at nothing but `config`.
void check_values(const Config& config);

/// Throws Error if `config` asks for what cannot be on any host, or not on this one: nodes, CPUs, memory, the pools of
/// huge pages, the limit on locked memory, the ports of user networks. Creates nothing.
void validate(const Config& config);

/// Throws Error if the machine cannot have its balloon: it is too large, or memory is to stay where it is.
void validate_balloon(const Config& config);

/// Throws Error if this host does not have `bytes` more of memory for the guest of `config`.
void validate_more_memory(const Config& config, std::uint64_t bytes);

/// The huge pages that guest memory of `config` needs, by node.
[[nodiscard]] prefault::HugePageDemand huge_page_demand(const Config& config, const prefault::NumaTopology& topology);

} // namespace vmm
VMM_API_END
