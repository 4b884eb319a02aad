// Where guest memory lies on a host with several NUMA nodes, and where the threads that use it should run.
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
        0;               ///< memory that the kernel manages, including huge page pools; 0: a node without memory
    bool allowed = true; ///< whether this process may allocate from it (cpuset(7), mems)
};

/// The host's nodes. Threads: const after construction.
struct NumaTopology {
    std::vector<NumaNode> nodes;                  ///< at least one; those online, ascending; numbers may be missing
    std::vector<std::vector<unsigned>> distances; ///< a row for each of `nodes`, in the same order; empty: not known

    /// Reads the nodes from the kernel (Documentation/ABI/stable/sysfs-devices-node), limited by "Mems_allowed_list" of
    /// this process (proc_pid_status(5)). If the kernel says nothing (no NUMA, no sysfs in a container), the host is
    /// node 0 with all memory and the CPUs that the calling thread may use. Throws Error as usable_cpu_list() does.
    static NumaTopology read(std::string_view sysfs_node = "/sys/devices/system/node",
                             const std::string& process_status = "/proc/self/status");

    /// The node with number `id`; nullptr if there is none.
    [[nodiscard]] const NumaNode* find(unsigned id) const noexcept;
    /// The numbers of the nodes with memory that this process may use, ascending.
    [[nodiscard]] std::vector<unsigned> memory_nodes() const;
    /// The relative cost of reaching the memory of `to` from `from` (ACPI, SLIT): 10 for a node's own memory, and 255
    /// if there is no way. If it is not known, it is 10 for the node itself and 20 for any other, as in the kernel.
    [[nodiscard]] unsigned distance(unsigned from, unsigned to) const noexcept;
};

/// Where each part of `ram` (ascending, not overlapping) lies under a policy that has passed check_numa_policy(). For
/// kDefault and kInterleave the ranges stay whole, on no particular node; for kNode all lie on that node.
///
/// For kSplit the ranges lie in ascending order on ascending nodes with memory. They are cut only at multiples of
/// `granule_bytes` (a power of two: the larger of 2 MiB and the page size, so that no mapping is cut). The parts differ
/// by at most one granule; if there are fewer granules than nodes, the last nodes get nothing.
[[nodiscard]] std::vector<PlacedRange> place(std::span<const GuestRange> ram, const NumaPolicy& policy,
                                             const NumaTopology& topology, std::uint64_t granule_bytes);

/// Throws Error if `memory_bytes` of guest memory cannot be placed by `policy`: there is no such node, it has no
/// memory, this process may not use it, or it has less memory in total. The error says which nodes there are. Free
/// memory is not checked, because it may change at any time.
void check_numa_policy(const NumaPolicy& policy, const NumaTopology& topology, std::uint64_t memory_bytes);

/// Gives guest memory its policy (mbind(2)). Must be called before any page exists, because it moves no page. `ranges`
/// are parts of `regions`, each at host page boundaries, as place() returns them. kNode and kSplit bind, so that a
/// shortage on a node is an error and not a page elsewhere; kInterleave spreads over the nodes with memory that this
/// process may use.
///
/// For kDefault on a host of several nodes, memory gets the explicit policy to lie on the node of the thread that
/// populates it. The only effect is that automatic NUMA balancing leaves the memory alone (numa.cpp has the reason). A
/// policy that this process was started with (numactl(8)) stays. It is not reported if the kernel refuses this
/// precaution.
///
/// Throws Error: no such node, no memory; on a host of several nodes also if it is not permitted, or the kernel has no
/// NUMA.
void bind_memory(std::span<const MemoryRegion> regions, std::span<const PlacedRange> ranges, const NumaPolicy& policy,
                 const NumaTopology& topology);

/// Makes automatic NUMA balancing leave `bytes` alone, as bind_memory() does for kDefault. `bytes` must be at host page
/// boundaries and without pages yet. It is not reported if the kernel refuses.
void keep_from_numa_balancing(std::span<std::byte> bytes) noexcept;

/// True if something may keep this process from using all nodes of the host: a memory policy that it was started with
/// (numactl(8)), or its cpuset. False on a host of one node.
[[nodiscard]] bool is_confined(const NumaTopology& topology) noexcept;

/// The node for vCPU `vcpu` of `vcpus`. Neighbouring vCPUs share a node. The numbers of vCPUs on `nodes` (at least one
/// node) differ by at most one.
[[nodiscard]] unsigned node_of_vcpu(unsigned vcpu, unsigned vcpus, std::span<const unsigned> nodes);

/// The node of the page at `address` of this process. Nothing if there is no page, if it is only the shared zero page,
/// or if the kernel does not say. Populates nothing.
[[nodiscard]] std::optional<unsigned> node_of_page(const std::byte* address);

} // namespace vmm::prefault
