// What a machine is to be.
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

#include "devices/disk_io_kind.hpp"
#include "devices/virtio/console_size.hpp"
#include "kvm/host/export.hpp"
#include "kvm/host/guest_memory.hpp"
#include "prefault/host/cpu_list.hpp"
#include "prefault/host/numa_policy.hpp"
#include "prefault/host/pin_kind.hpp"
#include "prefault/options.hpp"
#include "vmm/device.hpp"
#include "vmm/log.hpp"
#include "vmm/stop_request.hpp"
#include "vmm/watch.hpp"

VMM_API_BEGIN
namespace vmm {

namespace prefault {
struct HugePageDemand;
struct NumaTopology;
} // namespace prefault

/// Output of the guest's that reached nobody.
struct LostOutput {
    std::uint64_t bytes = 0;
    std::string why{}; ///< for people; empty: not known
};

/// Where the guest's serial port is connected. The descriptors are loans that outlive the machine; -1: not connected.
/// The output descriptor's flags are left as they are, and a reader that does not read never stalls the guest.
struct CharacterConfig {
    int input_fd = -1;
    int output_fd = -1;
    /// Is given what the guest says, beside `output_fd` if that is there, too. Called on the thread of Machine::run(),
    /// which it should not hold up. What it throws ends the run and comes out of run().
    std::function<void(std::span<const std::byte>)> sink;
    /// How much of that `sink` could not pass on. Called once, when the guest has ended and `sink` has been given all;
    /// it may wait a moment for a slow reader. On the thread of Machine::run(). Empty: nothing is lost there.
    std::function<LostOutput()> sink_lost;
    /// Whether Ctrl-A is a prefix for commands to us (x: stop, h: help, Ctrl-A: itself). For a person at a terminal.
    bool escape_keys = false;
    /// The size of the terminal, where there is one; asked again when `resized_fd` (an eventfd) becomes readable. For a
    /// virtio console: a serial port cannot tell its guest.
    std::function<std::optional<devices::virtio::ConsoleSize>()> size;
    int resized_fd = -1;
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

/// What tells the guest of its hardware.
enum class HardwareDescription {
    kAcpi, ///< ACPI tables
    kFdt,  ///< a device tree, for kernels that read one (docs/devices.md)
    kBoth,
};

/// The name used on the command line: "acpi", "fdt", "both".
[[nodiscard]] std::string_view to_string(HardwareDescription hardware) noexcept;

/// A raw disk image or block device that the guest sees as a virtio block device. Its content is never looked at.
struct DiskConfig {
    std::string path{};
    bool read_only = false;
    bool direct = false; ///< past the host's page cache (O_DIRECT)
    unsigned queues = 1; ///< 1 to kMaxQueues
    std::string id{};    ///< the serial number the guest sees, at most kMaxIdBytes; empty: none
    /// Whether a second writer, of this or another process, is refused, and this disk where there is one already.
    bool lock = true;
    /// The size of the sectors that the guest sees, in bytes: 512 or 4096, whatever the host's are.
    unsigned sector_bytes = 512;
    devices::DiskIoKind io = devices::DiskIoKind::kAuto;

    static constexpr unsigned kMaxQueues = 16;
    static constexpr std::size_t kMaxIdBytes = 20;

    friend bool operator==(const DiskConfig&, const DiskConfig&) = default;
};

/// A port of the host's at which the guest is reached (`--net user`).
struct PortForward {
    bool udp = false;
    std::string host_address = "127.0.0.1"; ///< one of the host's, IPv4
    std::uint16_t host_port = 0;
    std::uint16_t guest_port = 0;

    friend bool operator==(const PortForward&, const PortForward&) = default;
};

/// A network interface of the guest's: either on a tap, or in user mode.
struct NetConfig {
    std::string tap{};                   ///< the host's tap interface it is connected to
    std::string mac{};                   ///< "52:54:00:12:34:56"; empty: one made from the interface's name
    bool user = false;                   ///< through the program passt, which needs no privileges
    bool host_loopback = false;          ///< with `user`: whether the guest may reach the host itself
    std::vector<PortForward> forwards{}; ///< with `user`

    friend bool operator==(const NetConfig&, const NetConfig&) = default;
};

/// Stream sockets between guest and host, carried over unix sockets (docs/devices.md).
struct VsockConfig {
    std::string path{};    ///< of the unix socket that programs connect to, at most 96 bytes
    std::uint32_t cid = 3; ///< the guest's, kMinCid to kMaxCid

    static constexpr std::uint32_t kMinCid = 3; ///< below are the hypervisor, loopback and the host
    static constexpr std::uint32_t kMaxCid = 0xfffffffe;

    friend bool operator==(const VsockConfig&, const VsockConfig&) = default;
};

/// A memory balloon: guest memory that the guest does without goes back to the host.
struct BalloonConfig {
    std::uint64_t target_bytes = 0; ///< how much the guest is asked for; whole pages of 4 KiB, less than its memory
    bool reporting = false;         ///< whether the guest also says which pages are free

    friend bool operator==(const BalloonConfig&, const BalloonConfig&) = default;
};

/// Everything a Machine is made from. A value; the defaults are those of the command line.
struct Config {
    /// An ELF vmlinux, a bzImage or any PVH kernel; empty: the guest built into this program.
    std::string kernel_path;
    std::string initrd_path; ///< empty: none
    /// The same, in memory instead of a file; null: not there. Copies of the configuration share the bytes, which
    /// nobody may change before the machine's constructor has come back; the machine does not need them any more then.
    std::shared_ptr<const std::vector<std::byte>> kernel_image{};
    std::shared_ptr<const std::vector<std::byte>> initrd_image{};
    /// Appended to kDefaultCommandLine.
    std::string command_line;

    std::uint64_t memory_bytes = 512 * kMiB; ///< a multiple of the page size, at least kMinMemoryBytes
    PageSize page_size = PageSize::kThp;
    unsigned vcpus = 1; ///< 1 to kMaxVcpus
    /// Which features of the host's processors the guest is offered: "host", or a level of the x86-64 psABI that is the
    /// same on every host ("x86-64-v1" to "x86-64-v4"), then what is taken away or has to be there, by its name in
    /// /proc/cpuinfo: "host,-x2apic,-avx512f", "x86-64-v2,+aes" (docs/cpu.md).
    std::string cpu = "host";
    bool nested = false; ///< whether the guest may have guests of its own: VMX or SVM, where the host offers it
    HardwareDescription hardware = HardwareDescription::kAcpi;
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
    CharacterConfig serial;
    std::optional<CharacterConfig> console; ///< a virtio console, hvc0 in Linux
    std::vector<DiskConfig> disks;          ///< /dev/vda, /dev/vdb, ... in Linux
    std::vector<NetConfig> nets;
    std::optional<VsockConfig> vsock;
    std::optional<BalloonConfig> balloon;
    std::vector<DeviceConfig> devices; ///< the embedding program's own
    bool rng = false;                  ///< whether the guest has a source of entropy (virtio-rng)
    LogSink log;
    /// Is told how the guest ended, on the thread of Machine::run(), when the report is whole. Not where run() throws.
    std::function<void(ExitReason)> ended;
    /// A request to stop that exists before the machine does, so that it is heard during construction, too: what the
    /// constructor waits for ends at once, and it throws Error. Null: the machine has its own.
    std::shared_ptr<StopRequest> stop;

    static constexpr std::uint64_t kMinMemoryBytes = 2 * kMiB;
    static constexpr unsigned kMaxVcpus = 254; ///< the ids that xAPIC mode can name
    static constexpr unsigned kMaxPrefaultWorkers = prefault::Options::kMaxWorkers;
    static constexpr const char* kDefaultCommandLine = "console=ttyS0";
};

/// Throws Error where `config` asks for what cannot be, on any host or on this one: sizes, counts, memory, ranges,
/// nodes, CPUs, the pools of huge pages, the limit on locked memory. Creates nothing.
void validate(const Config& config);

/// Throws Error where the machine cannot have its balloon: too large, or with memory that is to stay where it is.
void validate_balloon(const Config& config);

/// Throws Error where this host does not have `bytes` more for the guest of `config`.
void validate_more_memory(const Config& config, std::uint64_t bytes);

/// The huge pages guest memory of `config` needs, by node.
[[nodiscard]] prefault::HugePageDemand huge_page_demand(const Config& config, const prefault::NumaTopology& topology);

} // namespace vmm
VMM_API_END
