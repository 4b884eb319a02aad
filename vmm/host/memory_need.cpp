#include "vmm/host/memory_need.hpp"

#include <algorithm>
#include <bit>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "prefault/x86/second_level_host.hpp"
#include "vmm/host/capabilities.hpp"
#include "vmm/machine/virtio_devices.hpp"

namespace vmm {

namespace {

/// The memory of this program without a guest, with its libraries' data and its first threads. 2.5 MiB of a group's
/// memory were measured.
constexpr std::uint64_t kProgramBytes = 3 * kMiB;
/// The kernel's memory for a vCPU, with its thread's stacks. 470 KiB were measured, and 220 KiB for a prefault vCPU
/// (with shadow paging, which takes more).
constexpr std::uint64_t kVcpuBytes = 512 * kKiB;
constexpr std::uint64_t kPrefaultVcpuBytes = 256 * kKiB;
constexpr std::uint64_t kDeviceBytes = kMiB;
/// The mapped stack of a thread, with its guard. The C library reserves this much by default.
constexpr std::uint64_t kStackBytes = 8 * kMiB + 64 * kKiB;

/// The number of prefault vCPUs, including those for system management mode.
unsigned all_prefault_vcpus(const Config& config) {
    if (config.prefault.scope != prefault::Scope::kAll) {
        return 0;
    }
    return (config.prefault.smm ? 2 : 1) * prefault_vcpus(config);
}

unsigned user_networks(const Config& config) {
    return static_cast<unsigned>(std::ranges::count_if(config.nets, [](const NetConfig& net) { return net.user; }));
}

unsigned workers(const Config& config) {
    const bool any = config.prefault.scope != prefault::Scope::kNone || config.pin == prefault::Pin::kLongterm;
    return any ? prefault_vcpus(config) : 0;
}

std::uint64_t fixed_bytes(const Config& config, std::size_t devices) {
    return kProgramBytes + config.vcpus * kVcpuBytes + all_prefault_vcpus(config) * kPrefaultVcpuBytes +
           devices * kDeviceBytes;
}

/// The bytes of guest memory that exist before the guest runs.
std::uint64_t ahead_bytes(const Config& config) {
    if (config.pin == prefault::Pin::kLongterm && config.prefault.ranges.empty()) {
        return config.memory_bytes; // a pin creates the pages that do not exist
    }
    if (config.prefault.scope == prefault::Scope::kNone) {
        return 0;
    }
    std::uint64_t bytes = config.prefault.ranges.empty() ? config.memory_bytes : 0;
    for (const GuestRange& range : config.prefault.ranges) {
        bytes += range.size;
    }
    return bytes;
}

/// What KVM keeps for each page of a memslot from its creation on, even if the page does not exist.
std::uint64_t memslot_bytes(std::uint64_t bytes, bool may_be_shadow) {
    // One pointer for each 4 KiB, and two bytes that count the users of write tracking (struct kvm_arch_memory_slot).
    return may_be_shadow ? bytes / 512 + bytes / 2048 : bytes / 65536;
}

/// If `exists`, the memory is not made by this machine.
MemoryNeed need_of(std::uint64_t bytes, std::uint64_t ahead, const Config& config, bool may_be_shadow, bool exists) {
    const bool from_pool = is_from_pool(config.page_size) || exists;
    const std::uint64_t slots = memslot_bytes(bytes, may_be_shadow);
    MemoryNeed need;
    need.guest = from_pool ? 0 : bytes;
    need.guest_ahead = from_pool ? 0 : ahead;
    if (is_from_pool(config.page_size) && !exists) { // existing memory is counted by the process that made it
        need.pool = bytes;
        need.pool_ahead = ahead;
    }
    need.beside = slots + table_bytes(ahead, config.page_size, may_be_shadow);
    need.beside_all = slots + table_bytes(bytes, config.page_size, may_be_shadow);
    need.mapped = bytes;
    need.locked = prefault::resolved(config.pin, config.prefault.scope) != prefault::Pin::kNone;
    return need;
}

bool kvm_may_shadow() {
    return prefault::detect_second_level().may_be_shadow();
}

std::string tried(const Config& config, const MemoryNeed& need) {
    return "cannot give the guest " + format_bytes(config.memory_bytes) + " of memory" +
           (need.guest_ahead != 0 || need.pool_ahead != 0 ? " ahead of time" : "") + ": ";
}

} // namespace

std::uint64_t table_bytes(std::uint64_t bytes, PageSize page_size, bool may_be_shadow) noexcept {
    // There is a table of 4 KiB for each 2 MiB. For each transparent huge page the kernel keeps one, too, because it
    // may split the page.
    const std::uint64_t level = bytes / 512;
    if (is_from_pool(page_size)) {
        return level / 256; // These are the tables of 2 MiB entries, on both sides.
    }
    // The host's tables, and KVM's tables with the page that describes each of them. If KVM shadows the guest's tables,
    // it also notes for each entry which guest page it maps.
    return level + level + level / 16 + (may_be_shadow ? level : 0);
}

MemoryNeed memory_need(const Config& config, const prefault::NumaTopology& topology, bool may_be_shadow) {
    MemoryNeed need = need_of(config.memory_bytes, ahead_bytes(config), config, may_be_shadow,
                              config.memory_from.has_value() || is_handed_over(config));
    // Memory that the guest can be given later needs addresses, and KVM keeps data for each page of it.
    const std::uint64_t later =
        config.memory_max_bytes > config.memory_bytes ? config.memory_max_bytes - config.memory_bytes : 0;
    need.mapped += later;
    const std::uint64_t fixed =
        fixed_bytes(config, count_virtio_devices(config, topology)) + memslot_bytes(later, may_be_shadow);
    need.beside += fixed;
    need.beside_all += fixed;
    need.mapped += fixed + process_need(config, topology).threads * kStackBytes;
    return need;
}

MemoryNeed more_memory_need(const Config& config, std::uint64_t bytes, bool may_be_shadow) {
    return need_of(bytes, bytes, config, may_be_shadow, false);
}

ProcessNeed process_need(const Config& config, const prefault::NumaTopology& topology) {
    const std::uint64_t devices = count_virtio_devices(config, topology);
    const std::uint64_t prefault_vcpus = all_prefault_vcpus(config);
    ProcessNeed need;
    // KVM, the VM and its counters, the event loop, stops, timers, terminals, logs and reports take these.
    constexpr std::uint64_t kFixedDescriptors = 40;
    // A device has an interrupt, work, timers, an event loop and the end of its thread, and two queues' doorbells.
    constexpr std::uint64_t kPerDevice = 10;
    need.descriptors =
        kFixedDescriptors + 2 * (config.vcpus + prefault_vcpus) + kPerDevice * devices + 2 * config.devices.size();
    for (const DiskConfig& disk : config.disks) {
        need.descriptors += 3 + 2ULL * disk.queues; // A disk has an image, its ring, and a doorbell for each queue.
    }
    std::uint64_t lanes = 0;
    for (const NetConfig& net : config.nets) {
        lanes += net.queues - 1;
    }
    // Each has a link, an event loop, an event for its turns and one for its end, and for two queues doorbells and
    // interrupts.
    need.descriptors += 8 * lanes;
    if (config.pin == prefault::Pin::kLongterm) {
        need.descriptors += std::min<std::uint64_t>(config.memory_bytes / kGiB + 2, 130);
    }
    // Threads that fill the second level have ended when the guest starts, except in the background. With them runs a
    // thread that waits for a request to stop. One more thread is KVM's own.
    const std::uint64_t of_guest = config.vcpus + devices + lanes;
    const std::uint64_t of_prefault = workers(config) != 0 ? workers(config) + 1 : 0;
    need.threads =
        1 + user_networks(config) +
        (config.prefault_when == PrefaultWhen::kBackground ? of_guest + of_prefault : std::max(of_guest, of_prefault));
    // Each thread has a stack with its guard and an arena of the C library. Each vCPU has its shared area. The rest is
    // for rings.
    need.mappings = 64 + 4 * need.threads + config.vcpus + prefault_vcpus + 8 * devices;
    return need;
}

void check_host_room(const Config& config, const HostFacts& facts) {
    const MemoryNeed need = memory_need(config, facts.nodes, facts.may_be_shadow);
    const auto total_bytes = facts.memory.host.total_bytes;
    if (!is_from_pool(config.page_size) && total_bytes && config.memory_bytes > *total_bytes) {
        throw Error("cannot give the guest " + format_bytes(config.memory_bytes) + " of memory: this host has " +
                    format_bytes(*total_bytes));
    }
    if (const MemoryVerdict verdict = judge_memory(need, facts.memory); !verdict.refusal.empty()) {
        throw Error(tried(config, need) + verdict.refusal);
    }
    if (const std::string refusal = judge_process(process_need(config, facts.nodes), facts.process); !refusal.empty()) {
        throw Error(refusal);
    }
}

void check_room_for_more(const Config& config, std::uint64_t bytes) {
    const MemoryVerdict verdict = judge_memory(more_memory_need(config, bytes, kvm_may_shadow()), read_memory_facts());
    if (!verdict.refusal.empty()) {
        throw Error("cannot give the guest " + format_bytes(bytes) + " more memory: " + verdict.refusal);
    }
}

std::vector<std::string> host_room_warnings(const Config& config) {
    return judge_memory(memory_need(config, prefault::NumaTopology::read(), kvm_may_shadow()), read_memory_facts())
        .warnings;
}

} // namespace vmm
