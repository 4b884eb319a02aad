#include "vmm/config.hpp"

#include <algorithm>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "kvm/host/error.hpp"
#include "prefault/host/warm_memory.hpp"
#include "vmm/host/host_facts.hpp"
#include "vmm/machine/custom_devices.hpp"
#include "vmm/machine/memory_map.hpp"
#include "vmm/machine/pluggable_memory.hpp"
#include "vmm/machine/x86/cpu_model.hpp"
#include "vmm/refuse_nul.hpp"

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

void validate_prefault(const Config& config) {
    const prefault::Options& options = config.prefault;
    if (options.scope == prefault::Scope::kNone && !options.ranges.empty()) {
        throw Error("cannot populate ranges of memory with Config::prefault.scope=none");
    }
    if (options.scope != prefault::Scope::kAll && options.smm) {
        throw Error(
            "cannot fill the second level of system management mode alone: take Config::prefault.scope=all with "
            "Config::prefault.smm");
    }
    if (options.scope == prefault::Scope::kNone && config.prefault_when == PrefaultWhen::kBackground &&
        !restores_lazily(config)) {
        throw Error("cannot prefault nothing in the background: take Config::prefault.scope=all or host with "
                    "Config::prefault_when=background");
    }
    prefault::check_option_values(options, memory_map::ram_layout(config.memory_bytes), config.page_size);
}

void validate_keep(const Config& config) {
    if (!config.prefault_keep) {
        return;
    }
    if (config.prefault.scope != prefault::Scope::kAll || !config.prefault.ranges.empty()) {
        throw Error(
            "cannot keep the second level full (Config::prefault_keep) if it is not filled, or only in part: take "
            "Config::prefault.scope=all");
    }
    if (config.keep_every_ms < Config::kMinKeepEveryMs || config.keep_every_ms > Config::kMaxKeepEveryMs) {
        throw Error("cannot look for lost mappings every " + std::to_string(config.keep_every_ms) +
                    " ms (Config::keep_every_ms): " + std::to_string(Config::kMinKeepEveryMs) + " to " +
                    std::to_string(Config::kMaxKeepEveryMs) + " are possible");
    }
}

void validate_devices(const Config& config) {
    for (const DiskConfig& disk : config.disks) {
        disk.check();
    }
    if (config.vsock) {
        config.vsock->check();
    }
    std::set<std::string> taps;
    for (const NetConfig& net : config.nets) {
        net.check();
        if (!net.user && !taps.insert(net.tap).second) {
            throw Error("cannot connect two networks of the guest to the tap interface " + net.tap +
                        ": it takes one (make another: `ip tuntap add NAME mode tap`)");
        }
    }
    validate_custom_devices(config);
}

void validate_texts(const Config& config) {
    refuse_nul(config.kernel_path, "the path of the kernel");
    refuse_nul(config.initrd_path, "the path of the initrd");
    refuse_nul(config.command_line, "the kernel command line");
    refuse_nul(config.cpu, "the guest's processor (Config::cpu)");
}

void validate_memory_source(const Config& config) {
    if (!config.memory_from) {
        return;
    }
    config.memory_from->check();
    if (config.reserve_huge_pages) {
        throw Error("cannot reserve huge pages for memory that comes from the pool at " + config.memory_from->path +
                    ": that pool has them already (take Config::reserve_huge_pages=false)");
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

void validate_restore(const Config& config) {
    if (!config.restore) {
        return;
    }
    config.restore->check();
    if (!config.kernel_path.empty() || config.kernel_image || !config.initrd_path.empty() || config.initrd_image ||
        !config.command_line.empty()) {
        throw Error(
            "cannot boot a kernel and go on from a snapshot (Config::restore): leave out the kernel, the initrd "
            "and the command line, which are those of the snapshot");
    }
    if (config.restore->mode == RestoreMode::kCow && (is_from_pool(config.page_size) || config.memory_from)) {
        throw Error(
            "cannot map the memory of a snapshot (Config::restore.mode=cow) as huge pages of a pool or in place "
            "of warm memory: take Config::page_size=4K or thp without Config::memory_from, or "
            "Config::restore.mode=full");
    }
    if (restores_lazily(config) && (config.page_size == PageSize::k1G || config.memory_from)) {
        throw Error(
            "cannot read the memory of a snapshot when it is touched (Config::restore.mode=lazy) in pages of 1G, "
            "which come as a whole, or in place of warm memory, which is there: take Config::page_size=4K, thp or "
            "2M without Config::memory_from, or Config::restore.mode=full");
    }
    if (!config.devices.empty()) {
        throw Error("cannot go on from a snapshot (Config::restore) with devices of the embedding program "
                    "(Config::devices): their state is not known");
    }
}

void validate_incoming(const Config& config) {
    if (!config.incoming) {
        return;
    }
    const std::string tried = "cannot take a guest that arrives (Config::incoming)";
    if (config.restore) {
        throw Error(tried + " and go on from a snapshot (Config::restore): leave one out");
    }
    if (!config.kernel_path.empty() || config.kernel_image || !config.initrd_path.empty() || config.initrd_image ||
        !config.command_line.empty()) {
        throw Error(tried + " and boot a kernel: leave out the kernel, the initrd and the command line, which the "
                            "guest has already");
    }
    if (config.incoming->may_post_copy() && (config.page_size == PageSize::k1G || config.memory_shared)) {
        throw Error(tried + " before all of its memory does (post-copy) in pages of 1G or in shared memory: take "
                            "Config::page_size=4K, thp or 2M and Config::memory_shared=false, or migrate without "
                            "post-copy");
    }
    if (config.memory_from) {
        throw Error(tried + " in warm memory of a pool (Config::memory_from): leave that out");
    }
    if (!config.devices.empty()) {
        throw Error(tried + " with devices of the embedding program (Config::devices): their state is not known");
    }
}

void validate_sharing(const Config& config) {
    if (!config.memory_shared) {
        return;
    }
    const std::string tried = "cannot share the guest's memory (Config::memory_shared)";
    if (config.memory_from) {
        throw Error(tried + " if it comes from a pool of warm memory, whose pieces have one owner "
                            "(Config::memory_from): leave one out");
    }
    if (config.restore && config.restore->mode != RestoreMode::kFull) {
        throw Error(tried + " and go on from a snapshot in another way than by reading all of it first: take "
                            "Config::restore.mode=full");
    }
    if (config.balloon) {
        throw Error(tried + " and give the guest a balloon (Config::balloon): pages of a file do not go back to the "
                            "host (leave one out)");
    }
}

} // namespace

void validate_balloon(const Config& config) {
    if (!config.balloon) {
        return;
    }
    const std::string tried = "cannot give the guest a balloon";
    if (config.prefault.scope != prefault::Scope::kNone) {
        throw Error(
            tried +
            " with Config::prefault.scope: what a balloon gives back to the host faults again when the guest takes "
            "it into use, which is what a prefault is to prevent (take Config::prefault.scope=none)");
    }
    if (prefault::resolved(config.pin, config.prefault.scope) != prefault::Pin::kNone) {
        throw Error(tried + " with Config::pin: memory that is locked or pinned cannot be given back to the host (take "
                            "Config::pin=none)");
    }
    if (is_from_pool(config.page_size)) {
        throw Error(tried + " with Config::page_size=" + std::string(to_string(config.page_size)) +
                    ": pages of a pool are the guest's until it ends (take Config::page_size=thp or 4K)");
    }
    if (config.memory_from) {
        throw Error(tried + " with Config::memory_from: memory of a pool is the guest's until it ends (leave one out)");
    }
    config.balloon->check(config.memory_bytes);
}

void MemoryFrom::check() const {
    prefault::check_pool_path(path);
}

std::string_view to_string(SandboxMode mode) noexcept {
    switch (mode) {
    case SandboxMode::kOff:
        return "off";
    case SandboxMode::kLog:
        return "log";
    case SandboxMode::kOn:
        return "on";
    }
    return "?";
}

std::string_view to_string(PrefaultWhen when) noexcept {
    return when == PrefaultWhen::kBackground ? "background" : "before";
}

std::string_view to_string(VirtioTransport transport) noexcept {
    switch (transport) {
    case VirtioTransport::kMmio:
        return "mmio";
    case VirtioTransport::kPci:
        return "pci";
    }
    return "?";
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
    return "?";
}

bool is_handed_over(const Config& config) noexcept {
    return config.incoming && config.incoming->hands_memory_over();
}

bool restores_lazily(const Config& config) noexcept {
    return (config.restore && config.restore->mode == RestoreMode::kLazy) ||
           (config.incoming && config.incoming->may_post_copy());
}

Config resolved(Config config) {
    config.pin = prefault::resolved(config.pin, config.prefault.scope);
    config.prefault = prefault::resolved(std::move(config.prefault));
    if (restores_lazily(config)) {
        config.prefault_when = PrefaultWhen::kBackground;
    }
    return config;
}

void check_values(const Config& config) {
    validate_texts(config);
    validate_images(config);
    validate_restore(config);
    validate_incoming(config);
    validate_sharing(config);
    validate_memory_size(config);
    validate_pluggable(config);
    validate_memory_source(config);
    if (config.vcpus < 1 || config.vcpus > Config::kMaxVcpus) {
        throw Error("cannot give the guest " + std::to_string(config.vcpus) + " vCPUs: 1 to " +
                    std::to_string(Config::kMaxVcpus) + " are possible");
    }
    static_cast<void>(CpuModel::parse(config.cpu, config.nested));
    validate_prefault(config);
    validate_keep(config);
    validate_balloon(config);
    validate_devices(config);
    if (config.reserve_huge_pages && !is_from_pool(config.page_size)) {
        throw Error("cannot reserve huge pages for Config::page_size=" + std::string(to_string(config.page_size)) +
                    ": only 2M and 1G come from a pool");
    }
}

void validate(const Config& config) {
    check_values(config);
    check_against_host(config, HostFacts::read());
}

} // namespace vmm
