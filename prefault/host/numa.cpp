#include "prefault/host/numa.hpp"

#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cerrno>
#include <charconv>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>
#include <system_error>

#include "kvm/host/error.hpp"
#include "prefault/host/huge_page_pool.hpp"

namespace vmm::prefault {

namespace {

std::string first_line(const std::string& path) {
    std::ifstream file(path);
    std::string line;
    std::getline(file, line);
    return line;
}

std::string node_directory(std::string_view sysfs_node, unsigned id) {
    return std::string(sysfs_node) + "/node" + std::to_string(id) + "/";
}

std::uint64_t read_memory_bytes(const std::string& meminfo_path) {
    std::ifstream meminfo(meminfo_path);
    for (std::string line; std::getline(meminfo, line);) { // E.g. "Node 0 MemTotal:       16214232 kB".
        std::istringstream words(line);
        std::string node;
        unsigned id = 0;
        std::string key;
        std::uint64_t kib = 0;
        if (words >> node >> id >> key >> kib && key == "MemTotal:") {
            return kib * kKiB;
        }
    }
    return 0;
}

/// The nodes of the process's cpuset; nothing if the kernel has no cpusets.
std::optional<CpuList> read_allowed_nodes(const std::string& status_path) {
    constexpr std::string_view kKey = "Mems_allowed_list:\t";
    std::ifstream status(status_path);
    for (std::string line; std::getline(status, line);) {
        if (line.starts_with(kKey)) {
            return parse_cpu_list(std::string_view(line).substr(kKey.size()));
        }
    }
    return std::nullopt;
}

NumaTopology one_node_host() {
    NumaNode node;
    node.cpus = usable_cpu_list();
    struct sysinfo host {}; // A system call is used because it needs no /proc.
    node.memory_bytes = ::sysinfo(&host) == 0 ? std::uint64_t{host.totalram} * host.mem_unit : UINT64_MAX;
    return {{node}, {}};
}

/// "node 0", "nodes 0-1": for messages.
std::string name_nodes(std::span<const unsigned> ids) {
    return (ids.size() == 1 ? "node " : "nodes ") + format_cpu_list(ids);
}

std::vector<unsigned> ids_of(std::span<const NumaNode> nodes) {
    std::vector<unsigned> ids;
    std::ranges::transform(nodes, std::back_inserter(ids), &NumaNode::id);
    return ids;
}

/// A range in granules. The first and the last granule may be only in part in the range.
struct Granules {
    std::uint64_t first_base;
    std::uint64_t count;
};

Granules granules_of(GuestRange range, std::uint64_t granule_bytes) {
    if (range.size == 0) {
        return {to_integer(range.base), 0};
    }
    const std::uint64_t first = align_down(to_integer(range.base), granule_bytes);
    const std::uint64_t last = align_down(to_integer(range.end()) - 1, granule_bytes);
    return {first, (last - first) / granule_bytes + 1};
}

std::vector<PlacedRange> split(std::span<const GuestRange> ram, std::span<const unsigned> nodes,
                               std::uint64_t granule_bytes) {
    assert(!nodes.empty());
    std::uint64_t total = 0;
    for (const GuestRange& range : ram) {
        total += granules_of(range, granule_bytes).count;
    }
    // The remaining granules go to the first nodes, one to each.
    const auto share = [&](std::size_t index) { return total / nodes.size() + (index < total % nodes.size() ? 1 : 0); };
    std::vector<PlacedRange> placed;
    std::size_t index = 0;
    std::uint64_t left_of_share = share(0);
    for (const GuestRange& range : ram) {
        auto [granule_base, left_of_range] = granules_of(range, granule_bytes);
        while (left_of_range != 0) {
            while (left_of_share == 0) {
                left_of_share = share(++index);
            }
            const std::uint64_t taken = std::min(left_of_range, left_of_share);
            const std::uint64_t start = std::max(granule_base, to_integer(range.base));
            granule_base += taken * granule_bytes;
            left_of_range -= taken;
            left_of_share -= taken;
            const std::uint64_t end = left_of_range == 0 ? to_integer(range.end()) : granule_base;
            placed.push_back({{GuestAddress{start}, end - start}, nodes[index]});
        }
    }
    return placed;
}

void check_node(unsigned id, const NumaTopology& topology, std::uint64_t memory_bytes) {
    const std::string tried = "cannot put guest memory on NUMA node " + std::to_string(id) + ": ";
    const NumaNode* const node = topology.find(id);
    if (node == nullptr) {
        throw Error(tried + "this host has " + name_nodes(ids_of(topology.nodes)) + " (take one of these)");
    }
    const std::string others = " (" + name_nodes(topology.memory_nodes()) + " would do)";
    if (node->memory_bytes == 0) {
        throw Error(tried + "it has no memory" + others);
    }
    if (!node->allowed) {
        throw Error(tried + "this process may not use its memory: see cpuset.mems of its cgroup" + others);
    }
    if (memory_bytes > node->memory_bytes) {
        throw Error("cannot put " + format_bytes(memory_bytes) + " of guest memory on NUMA node " + std::to_string(id) +
                    ": it has " + format_bytes(node->memory_bytes) +
                    " in all (less memory with Config::memory_bytes, or several nodes with Config::numa=split)");
    }
}

void check_split(const NumaTopology& topology, std::uint64_t memory_bytes) {
    const std::vector<unsigned> ids = topology.memory_nodes();
    const std::uint64_t part_bytes = memory_bytes / ids.size();
    for (const unsigned id : ids) {
        const std::uint64_t node_bytes = topology.find(id)->memory_bytes;
        if (part_bytes > node_bytes) {
            throw Error("cannot split " + format_bytes(memory_bytes) + " of guest memory over NUMA " + name_nodes(ids) +
                        ": node " + std::to_string(id) + " would hold " + format_bytes(part_bytes) + " and has " +
                        format_bytes(node_bytes) +
                        " in all (less memory with Config::memory_bytes, or Config::numa=interleave)");
        }
    }
}

/// A set of nodes in the form that the system calls take.
class NodeMask {
  public:
    explicit NodeMask(std::span<const unsigned> nodes) {
        for (const unsigned node : nodes) {
            assert(node < kMaxNodes);
            words_.at(node / kWordBits) |= 1UL << (node % kWordBits);
        }
    }
    [[nodiscard]] const unsigned long* words() const noexcept { return words_.data(); }
    /// One more than the number of bits, because the kernel subtracts one (mm/mempolicy.c, get_nodes).
    static constexpr unsigned long kBits = kMaxNodes + 1;

  private:
    static constexpr unsigned kWordBits = 8 * sizeof(unsigned long);
    std::array<unsigned long, kMaxNodes / kWordBits> words_{};
};

// The system calls are used directly: libnuma would offer no more, and if it is linked statically, its constructor
// reads /proc and /sys whenever the program starts.

/// Calls mbind(2). Returns 0 or the value of errno.
int try_bind(std::span<std::byte> bytes, int mode, std::span<const unsigned> nodes) {
    const NodeMask mask(nodes);
    // MPOL_LOCAL is the only mode without nodes; it takes no mask.
    const long result = ::syscall(SYS_mbind, bytes.data(), bytes.size(), static_cast<unsigned long>(mode),
                                  nodes.empty() ? nullptr : mask.words(), NodeMask::kBits, 0UL);
    return result == 0 ? 0 : errno;
}

/// Asks get_mempolicy(2) for the calling thread. Threads that it starts inherit its policy.
bool has_policy_of_its_own() {
    int mode = MPOL_DEFAULT;
    return ::syscall(SYS_get_mempolicy, &mode, nullptr, 0UL, nullptr, 0UL) == 0 && mode != MPOL_DEFAULT;
}

std::string bind_advice(int error_number) {
    switch (error_number) {
    case EPERM:
        return "a container's seccomp filter forbids mbind: allow it there, or give CAP_SYS_NICE";
    case EINVAL:
        return "a node has gone or has left the cpuset of this process: see cpuset.mems of its cgroup";
    case ENOMEM:
        return "the kernel is short of memory, or this process of mappings: see vm.max_map_count";
    case ENOSYS:
        return "this kernel is built without NUMA: leave the option away";
    default:
        return {};
    }
}

/// The host bytes of `range`, which must lie in one of `regions`.
std::span<std::byte> bytes_of(std::span<const MemoryRegion> regions, GuestRange range) {
    const auto region =
        std::ranges::find_if(regions, [&](const MemoryRegion& candidate) { return candidate.range.contains(range); });
    assert(region != regions.end());
    return region->bytes().subspan(to_integer(range.base) - to_integer(region->range.base), range.size);
}

void bind_range(std::span<const MemoryRegion> regions, GuestRange range, int mode, std::span<const unsigned> nodes,
                const NumaTopology& topology) {
    const int error_number = try_bind(bytes_of(regions, range), mode, nodes);
    const bool forbidden = error_number == ENOSYS || error_number == EPERM;
    if (error_number == 0 ||
        (forbidden && topology.nodes.size() == 1)) { // With one node all memory lies on the right node.
        return;
    }
    throw_errno(error_number,
                std::string(mode == MPOL_INTERLEAVE ? "interleave" : "bind") + " guest memory " + to_string(range) +
                    (mode == MPOL_INTERLEAVE ? " over NUMA " : " to NUMA ") + name_nodes(nodes),
                bind_advice(error_number));
}

/// Automatic NUMA balancing takes the access rights from mapped pages to see which thread touches them next. KVM then
/// drops their second-level mappings, and the guest takes again the faults that the prefault took for it.
///
/// It scans only mappings whose policy has MPOL_F_MOF (kernel/sched/fair.c, task_numa_work; mm/mempolicy.c,
/// vma_policy_mof). If a mapping has no policy, the default policy applies, which has that flag (mm/mempolicy.c,
/// get_task_policy and numa_policy_init). A policy given to mbind() has the flag only if MPOL_F_NUMA_BALANCING is asked
/// for (mm/mempolicy.c, sanitize_mpol_flags). So the same policy, made explicit, ends the scanning, and so does every
/// other policy here. Huge pages of the pool are never scanned.
void make_local_policy_explicit(std::span<const MemoryRegion> regions, std::span<const PlacedRange> ranges) {
    for (const PlacedRange& placed : ranges) {
        if (try_bind(bytes_of(regions, placed.range), MPOL_LOCAL, {}) != 0) {
            return;
        }
    }
}

} // namespace

NumaTopology NumaTopology::read(std::string_view sysfs_node, const std::string& process_status) {
    const auto online = parse_cpu_list(first_line(std::string(sysfs_node) + "/online"));
    const auto allowed = read_allowed_nodes(process_status);
    NumaTopology topology;
    for (const unsigned id : online.value_or(CpuList{})) {
        if (id >= kMaxNodes) {
            break;
        }
        const std::string directory = node_directory(sysfs_node, id);
        NumaNode node;
        node.id = id;
        node.cpus = parse_cpu_list(first_line(directory + "cpulist")).value_or(CpuList{}); // "" for a node without
                                                                                           // CPUs.
        node.memory_bytes = read_memory_bytes(directory + "meminfo");
        node.allowed = !allowed || std::ranges::binary_search(*allowed, id);
        std::istringstream distances(first_line(directory + "distance"));
        topology.distances.emplace_back(std::istream_iterator<unsigned>(distances), std::istream_iterator<unsigned>());
        topology.nodes.push_back(std::move(node));
    }
    return topology.memory_nodes().empty() ? one_node_host() : topology;
}

const NumaNode* NumaTopology::find(unsigned id) const noexcept {
    const auto node = std::ranges::find(nodes, id, &NumaNode::id);
    return node == nodes.end() ? nullptr : &*node;
}

std::vector<unsigned> NumaTopology::memory_nodes() const {
    std::vector<unsigned> ids;
    for (const NumaNode& node : nodes) {
        if (node.memory_bytes != 0 && node.allowed) {
            ids.push_back(node.id);
        }
    }
    return ids;
}

unsigned NumaTopology::distance(unsigned from, unsigned to) const noexcept {
    // A row has a column for each online node (drivers/base/node.c), not for each number.
    const auto row = static_cast<std::size_t>(std::ranges::find(nodes, from, &NumaNode::id) - nodes.begin());
    const auto column = static_cast<std::size_t>(std::ranges::find(nodes, to, &NumaNode::id) - nodes.begin());
    if (row < distances.size() && column < nodes.size() && distances[row].size() == nodes.size()) {
        return distances[row][column];
    }
    return from == to ? 10 : 20;
}

std::string to_string(const NumaPolicy& policy) {
    switch (policy.kind) {
    case NumaPolicy::Kind::kDefault:
        return "default";
    case NumaPolicy::Kind::kNode:
        return std::to_string(policy.node);
    case NumaPolicy::Kind::kInterleave:
        return "interleave";
    case NumaPolicy::Kind::kSplit:
        return "split";
    }
    return "?";
}

std::optional<NumaPolicy> parse_numa_policy(std::string_view text) {
    using Kind = NumaPolicy::Kind;
    for (const Kind kind : {Kind::kDefault, Kind::kInterleave, Kind::kSplit}) {
        if (text == to_string(NumaPolicy{kind})) {
            return NumaPolicy{kind};
        }
    }
    unsigned node = 0;
    const char* const end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data(), end, node);
    if (error != std::errc{} || rest != end || node >= kMaxNodes) {
        return std::nullopt;
    }
    return NumaPolicy{Kind::kNode, node};
}

std::vector<PlacedRange> place(std::span<const GuestRange> ram, const NumaPolicy& policy, const NumaTopology& topology,
                               std::uint64_t granule_bytes) {
    if (policy.kind == NumaPolicy::Kind::kSplit) {
        return split(ram, topology.memory_nodes(), granule_bytes);
    }
    const auto node = policy.kind == NumaPolicy::Kind::kNode ? std::optional(policy.node) : std::nullopt;
    std::vector<PlacedRange> placed;
    for (const GuestRange& range : ram) {
        placed.push_back({range, node});
    }
    return placed;
}

void check_numa_policy(const NumaPolicy& policy, const NumaTopology& topology, std::uint64_t memory_bytes) {
    switch (policy.kind) {
    case NumaPolicy::Kind::kDefault:
        return;
    case NumaPolicy::Kind::kNode:
        check_node(policy.node, topology, memory_bytes);
        return;
    case NumaPolicy::Kind::kInterleave: // The kernel falls back to other nodes as long as there is any memory.
    case NumaPolicy::Kind::kSplit:
        break;
    }
    if (topology.memory_nodes().empty()) {
        throw Error("cannot spread guest memory over NUMA nodes: this process may use the memory of none of " +
                    name_nodes(ids_of(topology.nodes)) + " (see cpuset.mems of its cgroup)");
    }
    if (policy.kind == NumaPolicy::Kind::kSplit) {
        check_split(topology, memory_bytes);
    }
}

void bind_memory(std::span<const MemoryRegion> regions, std::span<const PlacedRange> ranges, const NumaPolicy& policy,
                 const NumaTopology& topology) {
    switch (policy.kind) {
    case NumaPolicy::Kind::kDefault:
        if (topology.nodes.size() > 1 && !has_policy_of_its_own()) {
            make_local_policy_explicit(regions, ranges);
        }
        return;
    case NumaPolicy::Kind::kNode:
    case NumaPolicy::Kind::kSplit:
        for (const PlacedRange& placed : ranges) {
            assert(placed.node);
            bind_range(regions, placed.range, MPOL_BIND, {&*placed.node, 1}, topology);
        }
        return;
    case NumaPolicy::Kind::kInterleave: {
        const std::vector<unsigned> nodes = topology.memory_nodes();
        for (const PlacedRange& placed : ranges) {
            bind_range(regions, placed.range, MPOL_INTERLEAVE, nodes, topology);
        }
        return;
    }
    }
}

void keep_from_numa_balancing(std::span<std::byte> bytes) noexcept {
    if (!has_policy_of_its_own()) {
        static_cast<void>(try_bind(bytes, MPOL_LOCAL, {}));
    }
}

bool is_confined(const NumaTopology& topology) noexcept {
    return topology.nodes.size() > 1 &&
           (has_policy_of_its_own() || std::ranges::any_of(topology.nodes, [](const NumaNode& node) {
                return node.memory_bytes != 0 && !node.allowed;
            }));
}

unsigned node_of_vcpu(unsigned vcpu, unsigned vcpus, std::span<const unsigned> nodes) {
    assert(vcpu < vcpus && !nodes.empty());
    return nodes[static_cast<std::size_t>(std::uint64_t{vcpu} * nodes.size() / vcpus)];
}

std::optional<unsigned> node_of_page(const std::byte* address) {
    // move_pages() without a target only queries, but its parameter type is that of a page it may move.
    std::array<void*, 1> page{const_cast<std::byte*>(address)};
    int status = -ENOENT;
    if (::syscall(SYS_move_pages, 0, page.size(), page.data(), nullptr, &status, 0) != 0 || status < 0) {
        return std::nullopt;
    }
    return static_cast<unsigned>(status);
}

} // namespace vmm::prefault
