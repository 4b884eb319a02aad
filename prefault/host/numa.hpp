// Where guest memory lies on a host of several NUMA nodes, and where the threads that use it belong.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/host/guest_memory.hpp"
#include "prefault/host/cpu_list.hpp"
#include "prefault/host/numa_policy.hpp"
#include "prefault/host/placement.hpp"

namespace vmm::prefault {

/// One above the highest node number Linux can have (arch/x86/Kconfig, NODES_SHIFT).
inline constexpr unsigned kMaxNodes = 1024;

/// One node of the host.
struct NumaNode {
    unsigned id = 0;
    CpuList cpus; ///< may be empty: a node of memory only
    std::uint64_t memory_bytes =
        0;               ///< what the kernel manages of it, huge page pools included; 0: a node without memory
    bool allowed = true; ///< whether this process may allocate from it (cpuset(7), mems)
};

/// The host's nodes. Threads: const after construction.
struct NumaTopology {
    std::vector<NumaNode> nodes;                  ///< those online, ascending; numbers may be missing; at least one
    std::vector<std::vector<unsigned>> distances; ///< a row for each of `nodes`, in that order; may be empty: unknown

    /// What the kernel says (Documentation/ABI/stable/sysfs-devices-node), narrowed by "Mems_allowed_list" of this
    /// process (proc_pid_status(5)). If it says nothing (no NUMA in the kernel, no sysfs in a container) the host is
    /// node 0 with all memory and the CPUs that the calling thread may use. Throws Error as usable_cpu_list() does.
    static NumaTopology read(std::string_view sysfs_node = "/sys/devices/system/node",
                             const std::string& process_status = "/proc/self/status");

    /// The node of that number, or nullptr.
    [[nodiscard]] const NumaNode* find(unsigned id) const noexcept;
    /// The numbers of the nodes that have memory this process may use, ascending.
    [[nodiscard]] std::vector<unsigned> memory_nodes() const;
    /// The relative cost of reaching the memory of `to` from `from` (ACPI, SLIT): 10 is a node's own, and 255 means
    /// that there is no way. If it is unknown it is 10 for a node itself and 20 for any other, as in the kernel.
    [[nodiscard]] unsigned distance(unsigned from, unsigned to) const noexcept;
};

/// Where each part of `ram` (ascending, not overlapping) is to lie by a policy that has passed check_numa_policy(). For
/// kDefault and kInterleave the ranges stay as they are, on no particular node; for kNode all lie on that one.
///
/// For kSplit they lie in ascending order on ascending nodes with memory. They are cut at multiples of `granule_bytes`
/// only (a power of two: the larger of 2 MiB and the page size, so that no mapping is cut). The parts differ by at most
/// one granule; if there are fewer granules than nodes the last nodes get nothing.
[[nodiscard]] std::vector<PlacedRange> place(std::span<const GuestRange> ram, const NumaPolicy& policy,
                                             const NumaTopology& topology, std::uint64_t granule_bytes);

/// Throws Error if `memory_bytes` of guest memory cannot be placed so: there is no such node, it has no memory, this
/// process may not use it, or all memory that it has is less. The error says which nodes there are. It is not about
/// free memory, which may change at any time.
void check_numa_policy(const NumaPolicy& policy, const NumaTopology& topology, std::uint64_t memory_bytes);

/// Gives guest memory its policy (mbind(2)) before any page exists, because it moves none. `ranges` are parts of
/// `regions`, each at host page boundaries, as place() returns them. kNode and kSplit bind, so that a node that runs
/// dry is an error and not a page elsewhere; kInterleave spreads over the nodes with memory that this process may use.
///
/// For kDefault, memory on a host of several nodes gets the explicit policy to lie on the node of the thread that
/// populates it. That changes nothing but that automatic NUMA balancing leaves it alone (numa.cpp has the reason). A
/// policy that this process was started with (numactl(8)) is not touched. If the kernel refuses this precaution nothing
/// is said.
///
/// Throws Error: no such node, no memory; on a host of several nodes also not permitted, or no NUMA in the kernel.
void bind_memory(std::span<const MemoryRegion> regions, std::span<const PlacedRange> ranges, const NumaPolicy& policy,
                 const NumaTopology& topology);

/// Has automatic NUMA balancing leave `bytes` alone, at host page boundaries and without pages yet, as bind_memory()
/// does for kDefault. Nothing is said if the kernel refuses.
void keep_from_numa_balancing(std::span<std::byte> bytes) noexcept;

/// True if this process may be kept from using all the host's nodes: by a memory policy that it was started with
/// (numactl(8)), or by its cpuset. False on a host of one node.
[[nodiscard]] bool is_confined(const NumaTopology& topology) noexcept;

/// The node for vCPU `vcpu` of `vcpus`. Neighbours share one, and all of `nodes` (at least one) have as many, or one
/// more.
[[nodiscard]] unsigned node_of_vcpu(unsigned vcpu, unsigned vcpus, std::span<const unsigned> nodes);

/// The node that the page at `address` of this process lies on; nothing if there is no page, or only the shared zero
/// page, or the kernel does not say. Populates nothing.
[[nodiscard]] std::optional<unsigned> node_of_page(const std::byte* address);

} // namespace vmm::prefault
