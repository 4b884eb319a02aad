#include "vmm/config.hpp"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "devices/tap.hpp"
#include "devices/virtio/balloon.hpp"
#include "devices/virtio/vsock.hpp"
#include "kvm/host/error.hpp"
#include "loader/acpi_numa.hpp"
#include "prefault/host/huge_page_pool.hpp"
#include "prefault/host/numa.hpp"
#include "prefault/host/pin.hpp"
#include "vmm/host/memory_need.hpp"
#include "vmm/machine/custom_devices.hpp"
#include "vmm/machine/memory_map.hpp"
#include "vmm/machine/virtio_devices.hpp"
#include "vmm/machine/x86/cpu_model.hpp"
#include "vmm/network/user_network.hpp"

namespace vmm {

namespace {

void validate_memory_size(const Config& config) {
    const std::string tried = "cannot give the guest " + format_bytes(config.memory_bytes) + " of memory";
    if (config.memory_bytes < Config::kMinMemoryBytes) {
        throw Error(tried + ": it needs at least " + format_bytes(Config::kMinMemoryBytes) +
                    (config.memory_bytes != 0 ? " (a number without a unit is bytes: write e.g. 512M)" : ""));
    }
    const std::uint64_t page_bytes = certain_page_bytes(config.page_size);
    if (!is_aligned(config.memory_bytes, page_bytes)) {
        throw Error(tried + ": it must be a multiple of the page size, " + format_bytes(page_bytes));
    }
    if (config.memory_bytes > memory_map::kMaxMemoryBytes) {
        throw Error(tried + ": the most this program can give is " + format_bytes(memory_map::kMaxMemoryBytes));
    }
}

/// How much of memory a prefault makes exist.
std::uint64_t populated_bytes(const Config& config) {
    if (config.prefault.scope == prefault::Scope::kNone) {
        return 0;
    }
    std::uint64_t bytes = config.prefault.ranges.empty() ? config.memory_bytes : 0;
    for (const GuestRange& range : config.prefault.ranges) {
        bytes += range.size;
    }
    return bytes;
}

void validate_prefault(const Config& config) {
    const prefault::Options& options = config.prefault;
    if (options.scope == prefault::Scope::kNone && !options.ranges.empty()) {
        throw Error("cannot populate ranges of memory with --prefault=none");
    }
    if (options.scope != prefault::Scope::kAll && options.smm) {
        throw Error("cannot fill the second level of system management mode alone: take --prefault=all with "
                    "--prefault-smm");
    }
    if (options.scope == prefault::Scope::kNone && config.prefault_when == PrefaultWhen::kBackground) {
        throw Error("cannot prefault nothing in the background: take --prefault=all or host with "
                    "--prefault-when=background");
    }
    prefault::check_options(options, memory_map::ram_layout(config.memory_bytes), config.page_size);
    prefault::check_cpus_usable(config.vcpu_cpus, "--vcpu-cpus");
}

void validate_devices(const Config& config) {
    const std::size_t devices = count_virtio_devices(config);
    if (devices > memory_map::kVirtioGsis.size()) {
        throw Error("cannot give the guest " + std::to_string(devices) +
                    " virtio devices: there are interrupt lines for " + std::to_string(memory_map::kVirtioGsis.size()));
    }
    for (const DiskConfig& disk : config.disks) {
        const std::string tried = "cannot give the guest the disk " + disk.path;
        if (disk.queues < 1 || disk.queues > DiskConfig::kMaxQueues) {
            throw Error(tried + " with " + std::to_string(disk.queues) + " queues: 1 to " +
                        std::to_string(DiskConfig::kMaxQueues) + " are possible");
        }
        if (disk.sector_bytes != 512 && disk.sector_bytes != 4096) {
            throw Error(tried + " with sectors of " + std::to_string(disk.sector_bytes) +
                        " bytes: 512 and 4096 are possible");
        }
        const bool printable =
            std::all_of(disk.id.begin(), disk.id.end(), [](char c) { return c > ' ' && c < '\x7f'; });
        if (disk.id.size() > DiskConfig::kMaxIdBytes || !printable) {
            throw Error(tried + " with the id '" + disk.id + "': it has at most " +
                        std::to_string(DiskConfig::kMaxIdBytes) + " characters, printable ASCII without spaces");
        }
    }
    if (config.vsock) {
        devices::virtio::check_vsock_path(config.vsock->path);
    }
    std::set<std::string> taps;
    for (const NetConfig& net : config.nets) {
        if (!net.user) {
            devices::check_interface_name(net.tap);
            if (!taps.insert(net.tap).second) {
                throw Error("cannot connect two networks of the guest to the tap interface " + net.tap +
                            ": it takes one (make another: `ip tuntap add NAME mode tap`)");
            }
        }
        if (!net.mac.empty()) {
            static_cast<void>(devices::parse_mac_address(net.mac));
        }
        if (net.user) {
            check_user_network(net);
        }
    }
}

/// The kernel and the programs behind sockets take a text to its first NUL: it would be another file then, or another
/// address, than was meant.
void refuse_nul(std::string_view text, const std::string& what) {
    if (text.find('\0') != std::string_view::npos) {
        throw Error("cannot use " + what + ": it has a NUL character in it (remove that)");
    }
}

void validate_texts(const Config& config) {
    refuse_nul(config.kernel_path, "the path of the kernel");
    refuse_nul(config.initrd_path, "the path of the initrd");
    refuse_nul(config.command_line, "the kernel command line");
    refuse_nul(config.cpu, "the guest's processor (Config::cpu)");
    for (const DiskConfig& disk : config.disks) {
        refuse_nul(disk.path, "the path of a disk");
        refuse_nul(disk.id, "the id of a disk");
    }
    for (const NetConfig& net : config.nets) {
        refuse_nul(net.tap, "the name of a tap interface");
        refuse_nul(net.mac, "a MAC address");
        for (const PortForward& forward : net.forwards) {
            refuse_nul(forward.host_address, "the address of a forwarded port");
        }
    }
    if (config.vsock) {
        refuse_nul(config.vsock->path, "the path of the vsock");
    }
    for (const DeviceConfig& device : config.devices) {
        refuse_nul(device.name, "the name of a device");
    }
}

void validate_images(const Config& config) {
    const auto check = [](const auto& image, const std::string& path, const std::string& what) {
        if (!image) {
            return;
        }
        if (!path.empty()) {
            throw Error("cannot use " + path + " as the " + what +
                        ": there is one in memory, too (leave one of them out)");
        }
        if (image->empty()) {
            throw Error("cannot use the " + what + " in memory: it is empty");
        }
    };
    check(config.kernel_image, config.kernel_path, "kernel");
    check(config.initrd_image, config.initrd_path, "initrd");
}

} // namespace

void validate_balloon(const Config& config) {
    if (!config.balloon) {
        return;
    }
    const std::string tried = "cannot give the guest a balloon";
    if (config.prefault.scope != prefault::Scope::kNone) {
        throw Error(tried + " with --prefault: what a balloon gives back to the host faults again when the guest takes "
                            "it into use, which is what a prefault is to prevent (take --prefault=none)");
    }
    if (config.pin != prefault::Pin::kNone) {
        throw Error(tried + " with --pin: memory that is locked or pinned cannot be given back to the host (take "
                            "--pin=none)");
    }
    if (is_from_pool(config.page_size)) {
        throw Error(tried + " with --page-size=" + std::string(to_string(config.page_size)) +
                    ": pages of a pool are the guest's until it ends (take --page-size=thp or 4K)");
    }
    const std::uint64_t bytes = config.balloon->target_bytes;
    if (!is_aligned(bytes, devices::virtio::Balloon::kPageBytes)) {
        throw Error(tried + " of " + format_bytes(bytes) + ": it must be a multiple of 4 KiB");
    }
    if (bytes >= config.memory_bytes) {
        throw Error(tried + " of " + format_bytes(bytes) + ": the guest has " + format_bytes(config.memory_bytes) +
                    " of memory, and needs some of it");
    }
}

std::string_view to_string(PrefaultWhen when) noexcept {
    return when == PrefaultWhen::kBackground ? "background" : "before";
}

std::string_view to_string(HardwareDescription hardware) noexcept {
    switch (hardware) {
    case HardwareDescription::kAcpi:
        return "acpi";
    case HardwareDescription::kFdt:
        return "fdt";
    case HardwareDescription::kBoth:
        return "both";
    }
    return "unknown";
}

void validate_more_memory(const Config& config, std::uint64_t bytes) {
    if (is_from_pool(config.page_size)) {
        prefault::check_huge_page_pool(config.page_size, bytes);
    }
    check_room_for_more(config, bytes);
    prefault::check_may_pin(config.pin, bytes);
}

prefault::HugePageDemand huge_page_demand(const Config& config, const prefault::NumaTopology& topology) {
    prefault::HugePageDemand demand;
    demand.page_size = config.page_size;
    demand.will_be_raised = config.reserve_huge_pages;
    std::map<std::optional<unsigned>, std::uint64_t> by_node;
    const std::uint64_t granule = std::max(2 * kMiB, largest_page_bytes(config.page_size));
    for (const prefault::PlacedRange& placed :
         prefault::place(memory_map::ram_layout(config.memory_bytes), config.numa, topology, granule)) {
        by_node[placed.node] += placed.range.size;
    }
    for (const auto& [node, bytes] : by_node) {
        demand.shares.push_back({node, bytes});
    }
    return demand;
}

void validate(const Config& config) {
    validate_texts(config);
    validate_images(config);
    validate_memory_size(config);
    if (config.vcpus < 1 || config.vcpus > Config::kMaxVcpus) {
        throw Error("cannot give the guest " + std::to_string(config.vcpus) + " vCPUs: 1 to " +
                    std::to_string(Config::kMaxVcpus) + " are possible");
    }
    static_cast<void>(CpuModel::parse(config.cpu, config.nested));
    validate_prefault(config);
    validate_balloon(config);
    validate_devices(config);
    validate_custom_devices(config);
    const prefault::NumaTopology topology = prefault::NumaTopology::read();
    prefault::check_numa_policy(config.numa, topology, config.memory_bytes);
    if (config.numa.kind == prefault::NumaPolicy::Kind::kSplit && topology.nodes.size() > loader::kMaxAcpiNodes) {
        throw Error("cannot split guest memory over " + std::to_string(topology.nodes.size()) +
                    " NUMA nodes: a guest can be told of " + std::to_string(loader::kMaxAcpiNodes) +
                    " (take --numa=interleave or --numa-node)");
    }
    if (is_from_pool(config.page_size)) { // Memory that is set aside already.
        prefault::check_huge_page_pool(huge_page_demand(config, topology));
    } else if (config.reserve_huge_pages) {
        throw Error("cannot reserve huge pages for --page-size=" + std::string(to_string(config.page_size)) +
                    ": only 2M and 1G come from a pool");
    }
    check_host_room(config);
    prefault::check_may_pin(config.pin,
                            config.prefault.ranges.empty() || config.prefault.scope == prefault::Scope::kNone
                                ? config.memory_bytes
                                : populated_bytes(config));
}

} // namespace vmm
