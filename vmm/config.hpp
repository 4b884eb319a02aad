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

/// Says whether the threads that a guest can reach are confined (docs/threat-model.md).
enum class SandboxMode {
    kOff,
    kLog, ///< calls that kOn refuses are done, and the kernel writes them to its audit log
    kOn,  ///< a refused call raises SIGSYS, which ends the process unless the program has a handler
};

/// The name used on the command line: "off", "log", "on".
[[nodiscard]] std::string_view to_string(SandboxMode mode) noexcept;

/// How the guest is told of its hardware.
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

/// Memory that a pool of warm memory gives (MemoryPool, `vmm pool`). Its pages exist already and are zero, so only the
/// second level must still be filled. The pool must have pages of Config::page_size.
struct MemoryFrom {
    std::string path{}; ///< the pool's unix socket, at most 107 bytes
    /// If true, ordinary memory is used for what the pool does not have, and a warning is logged. If false, the machine
    /// is refused, and the pool keeps its memory.
    bool fallback = false;

    /// Throws Error if no host can give what it asks for.
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
    /// The kernel and the initrd in memory, instead of in files; null: there is none. Copies of the configuration share
    /// the bytes. Nobody may change the bytes until the machine's constructor has returned; it then gives up its share
    /// of them.
    std::shared_ptr<const std::vector<std::byte>> kernel_image{};
    std::shared_ptr<const std::vector<std::byte>> initrd_image{};
    /// The kernel command line. It is appended to kDefaultCommandLine.
    std::string command_line;
    /// The snapshot from which the machine goes on. If it is set, kernel, initrd and command line must be empty. If it
    /// is not set, the machine boots.
    std::optional<RestoreFrom> restore{};

    /// A guest that arrives from another process or host, and with which the machine goes on. It must have announced
    /// itself (IncomingGuest::wait()), and only one machine can be made of it. If it is set, kernel, initrd and command
    /// line must be empty; if it is null, the machine boots.
    std::shared_ptr<IncomingGuest> incoming{};

    std::uint64_t memory_bytes = limits::kDefaultMemoryBytes; ///< a multiple of the page size, at least kMinMemoryBytes
    /// The most memory that the guest can be given while it runs (Machine::set_memory(), virtio-mem), at least
    /// `memory_bytes`; 0: its memory cannot grow. It grows by whole blocks of 2 MiB. The blocks are larger if it can
    /// grow by more than 16 GiB or if `page_size` is 1G.
    std::uint64_t memory_max_bytes = 0;
    PageSize page_size = PageSize::kThp;
    std::optional<MemoryFrom> memory_from{}; ///< nothing: the machine makes its memory itself
    /// Whether memory is a file in memory (memfd_create(2)). Another process of this host can then take it over without
    /// a copy (Machine::migrate() to a unix socket). docs/migration.md says what this costs.
    bool memory_shared = false;
    /// What threads of vCPUs and of virtio devices may do. They are confined one by one when they begin; other threads
    /// of the process are not confined. A custom device is called on threads of vCPUs, so it may make only the calls
    /// that are listed in vmm/sandbox/filters/thread_rules.cpp.
    SandboxMode sandbox = SandboxMode::kOff;
    unsigned vcpus = 1; ///< 1 to kMaxVcpus
    /// The features of the host's processors that the guest is offered (docs/cpu.md). It begins with "host", or with a
    /// level of the x86-64 psABI: "x86-64-v1" to "x86-64-v4". A level is the same on every host. Names of features from
    /// /proc/cpuinfo may follow, with - to take one away and + to require it: "host,-x2apic,-avx512f",
    /// "x86-64-v2,+aes".
    std::string cpu = "host";
    bool nested = false; ///< whether the guest may have guests of its own (VMX or SVM); the host must offer it
    HardwareDescription hardware = HardwareDescription::kAcpi;
    /// How the guest reaches its virtio devices. A guest that goes on (`restore`, `incoming`) reaches them as before.
    /// The default takes half of the exits that kMmio takes (docs/benchmarks.md), and devices can be added and removed
    /// while the guest runs.
    VirtioTransport transport = VirtioTransport::kPci;
    /// The CPUs on which vCPUs run. vCPU i runs on the CPU at place i of the list; after its end the list begins again.
    /// If the list is empty, a vCPU runs where the process may, or on its node if `numa` is split.
    prefault::CpuList vcpu_cpus;
    /// The CPUs on which the threads of virtio devices run. If the list is empty, they run where the process may. A
    /// device that wakes on the CPU of a vCPU takes time from that vCPU: use other CPUs here if `vcpu_cpus` are for
    /// vCPUs alone.
    prefault::CpuList device_cpus;
    /// The nodes of the host on which guest memory lies.
    prefault::NumaPolicy numa;
    /// Whether the pools of huge pages are raised by the pages that are missing, and lowered again at the end. Needs
    /// root.
    bool reserve_huge_pages = false;
    /// How guest memory is kept resident. By default it is locked if anything is populated.
    prefault::Pin pin = prefault::Pin::kAuto;
    /// What Machine::prefault() populates, and how. `background` follows from `prefault_when`.
    prefault::Options prefault{.scope = prefault::Scope::kNone};
    PrefaultWhen prefault_when = PrefaultWhen::kBefore;
    /// Whether the second level is kept full while the guest runs. Mappings that the kernel takes away are noticed,
    /// reported and populated again, at low priority (docs/prefault.md). It needs the scope kAll, of all memory.
    bool prefault_keep = false;
    /// The time from one check of KVM's counters to the next, in milliseconds: kMinKeepEveryMs to kMaxKeepEveryMs.
    unsigned keep_every_ms = limits::kDefaultKeepEveryMs;
    /// It is called with what was lost and populated again, on the keeper's thread. It may be empty.
    prefault::KeptSink kept;
    /// It is called with a sample of the second level once a second while the guest runs. It may be empty.
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
    /// It is called when the guest runs, on the thread of Machine::run(), and should return soon. What it throws ends
    /// the run and comes out of run().
    std::function<void()> started;
    /// It is called when a prefault in the background has filled the second level, on that prefault's thread.
    std::function<void()> filled;
    /// It is called with the reason for which the guest ended, when the report is complete, on the thread of
    /// Machine::run(). It is not called if run() throws.
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

/// Whether another process hands over the guest's memory, so that it exists already (Config::incoming).
[[nodiscard]] bool is_handed_over(const Config& config) noexcept;

/// Whether the guest's memory comes while it runs (RestoreMode::kLazy), or may come then
/// (MigrationOptions::post_copy_after).
[[nodiscard]] bool restores_lazily(const Config& config) noexcept;

/// Returns `config` with its derived defaults filled in. prefault::kWorkerPerCpu becomes the number of CPUs that
/// workers may use, and Pin::kAuto becomes kMlock if anything is populated, else kNone; an explicit choice stays. If
/// the guest's memory comes while it runs, prefault_when becomes kBackground. A Machine does this with the
/// configuration it is given. Throws Error as prefault::usable_cpu_list().
[[nodiscard]] Config resolved(Config config);

/// Checks texts, sizes, counts, ranges, and choices that exclude each other. It looks at nothing but `config`. Throws
/// Error if no host can have this machine.
void check_values(const Config& config);

/// Checks `config` as check_values() does, and against this host: nodes, CPUs, memory, the pools of huge pages, the
/// limit on locked memory, the ports of user networks. It creates nothing. Throws Error if this host cannot have the
/// machine.
void validate(const Config& config);

/// Throws Error if the machine cannot have its balloon: the balloon is too large, or memory must stay where it is.
void validate_balloon(const Config& config);

/// Throws Error if this host does not have `bytes` more of memory for the guest of `config`.
void validate_more_memory(const Config& config, std::uint64_t bytes);

/// The huge pages that guest memory of `config` needs, by node.
[[nodiscard]] prefault::HugePageDemand huge_page_demand(const Config& config, const prefault::NumaTopology& topology);

} // namespace vmm
VMM_API_END
