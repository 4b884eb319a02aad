// The host's pools of huge pages: what they have, whether that will do, and raising them for a run.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "kvm/host/cgroup.hpp"
#include "kvm/host/guest_memory.hpp"
#include "kvm/host/unique_fd.hpp"

namespace vmm::prefault {

/// Where the host says what it has. The defaults are the kernel's own places.
struct HugePageRoots {
    std::string mm = "/sys/kernel/mm";
    std::string nodes = "/sys/devices/system/node";
    std::string meminfo = "/proc/meminfo";
    CgroupRoots cgroups;
    /// Is called with a pool's file and the count instead of writing it there, for files that have no kernel behind
    /// them. Must not throw. Empty: counts are written.
    std::function<void(const std::string& file, std::uint64_t pages)> write_count;
};

/// One NUMA node's part of a pool, in pages. The kernel keeps no count of reserved pages by node.
struct NodeHugePages {
    unsigned node = 0;
    std::uint64_t total = 0; ///< surplus included
    std::uint64_t free = 0;
    std::uint64_t surplus = 0;
};

/// One pool (Documentation/admin-guide/mm/hugetlbpage.rst), in pages.
struct HugePagePool {
    std::uint64_t page_bytes = 0;
    std::uint64_t total = 0; ///< surplus included
    std::uint64_t free = 0;
    std::uint64_t reserved = 0;       ///< of the free ones, promised to mappings that exist
    std::uint64_t surplus = 0;        ///< made on demand, beyond what the pool was set to; they go when they are freed
    std::uint64_t overcommit = 0;     ///< how many more the kernel may make on demand, beyond those it has made so
    std::vector<NodeHugePages> nodes; ///< in ascending order; empty if the kernel does not count by node

    /// What a new mapping can have for certain.
    [[nodiscard]] std::uint64_t available() const noexcept { return free > reserved ? free - reserved : 0; }
    /// The same with what the kernel may make on demand, if it finds the memory.
    [[nodiscard]] std::uint64_t available_on_demand() const noexcept { return available() + overcommit; }
    /// What a new mapping can have from one node; 0 if there is no such node. It is not known from which node a
    /// reserved page will be taken, so only those for which the other nodes have no room count against this one.
    [[nodiscard]] std::uint64_t available_on(unsigned node) const noexcept;
    /// The node's part, or null.
    [[nodiscard]] const NodeHugePages* find_node(unsigned node) const noexcept;
};

/// The pool for pages of `page_bytes`, or nothing if this host has no such page size.
[[nodiscard]] std::optional<HugePagePool> read_huge_page_pool(std::uint64_t page_bytes,
                                                              const HugePageRoots& roots = {});

/// The pools of all sizes that this host has, smallest pages first.
[[nodiscard]] std::vector<HugePagePool> read_huge_page_pools(const HugePageRoots& roots = {});

/// True if this process may change the size of that pool. The kernel is asked, because to be root of a user namespace
/// is not enough.
[[nodiscard]] bool may_raise_huge_page_pool(std::uint64_t page_bytes, const HugePageRoots& roots = {});

/// A control group's limit on huge pages of one size (Documentation/admin-guide/cgroup-v2.rst, HugeTLB; v1:
/// cgroup-v1/hugetlb.rst), in bytes.
struct HugePageCgroupLimit {
    std::string file; ///< that sets the limit
    std::uint64_t limit_bytes = 0;
    std::uint64_t used_bytes = 0;

    /// What may still be taken.
    [[nodiscard]] std::uint64_t remaining_bytes() const noexcept {
        return limit_bytes > used_bytes ? limit_bytes - used_bytes : 0;
    }
};

/// The limit on pages of `page_bytes` that leaves this process least; nothing if there is none. Limits hold for pages
/// in use and for pages reserved, in the process's own groups and in those above.
[[nodiscard]] std::optional<HugePageCgroupLimit> read_huge_page_cgroup_limit(std::uint64_t page_bytes,
                                                                             const HugePageRoots& roots = {});

/// A part of guest memory, and where its pages are to come from.
struct HugePageShare {
    std::optional<unsigned> node; ///< nothing: any node
    std::uint64_t bytes = 0;      ///< part of a page counts as a page
};

/// What a guest wants of the pool. Several shares of one node count together.
struct HugePageDemand {
    PageSize page_size = PageSize::k2M;
    std::vector<HugePageShare> shares;
    /// Whether a HugePageReservation will supply what is missing. It is no error then if the pool can be raised at all.
    bool will_be_raised = false;
};

/// Throws Error if `demand` cannot be had. The error says how many pages are needed and on which node, how many are
/// free or reserved by others, whether the control group limits them, and how to raise what is too low. Changes
/// nothing, and does nothing for kThp and k4K. To be called before anything is created.
void check_huge_page_pool(const HugePageDemand& demand, const HugePageRoots& roots = {});

/// The same for `bytes` from any node.
void check_huge_page_pool(PageSize page_size, std::uint64_t bytes, const HugePageRoots& roots = {});

/// Raises the pool by what a demand misses, and gives that back when it ends. Needs root.
///
/// Other processes may change the pool meanwhile, so the pool is lowered by what was added here, whatever its size is
/// then. Pages that are still mapped stay with their owner, as surplus, and go when they are unmapped. The files are
/// held open, so privileges may be dropped after construction. If the process is killed the pool stays raised until
/// somebody lowers it.
///
/// Until release_turn() other reservations of the same page size wait, so that nobody counts on free pages that this
/// process has not mapped yet. Processes that raise the pool by other means are not kept away.
///
/// Threads: one at a time.
class HugePageReservation {
  public:
    /// How long to wait for other reservations.
    static constexpr std::chrono::seconds kPatience{60};

    /// What was added to one pool.
    struct Added {
        std::optional<unsigned> node; ///< nothing: the pool of all nodes
        std::uint64_t pages = 0;
    };

    /// Raises nothing for kThp and k4K, or if enough is there already. Throws Error, with everything given back: what
    /// check_huge_page_pool() throws, no right to raise it, fewer pages than asked for (memory is fragmented), another
    /// reservation that does not end within `patience`.
    explicit HugePageReservation(const HugePageDemand& demand, const HugePageRoots& roots = {},
                                 std::chrono::milliseconds patience = kPatience);

    /// The same, but gives everything back and returns nothing if `stop` is requested first. A request is heard between
    /// two steps of 1 GiB (at least one page), and while it waits for others.
    [[nodiscard]] static std::optional<HugePageReservation>
    unless_stopped(const std::stop_token& stop, const HugePageDemand& demand, const HugePageRoots& roots = {},
                   std::chrono::milliseconds patience = kPatience);

    HugePageReservation(HugePageReservation&& other) noexcept;
    HugePageReservation& operator=(HugePageReservation&& other) noexcept;
    HugePageReservation(const HugePageReservation&) = delete;
    HugePageReservation& operator=(const HugePageReservation&) = delete;
    /// Gives back what was added. Waits at most a second for a process that is just changing the pool.
    ~HugePageReservation();

    /// Lets others reserve. To be called as soon as the memory is mapped; it need not be populated yet.
    void release_turn() noexcept { turn_.reset(); }

    /// What was added, by pool, nodes first; empty if nothing was missing. Surplus pages that became lasting ones by
    /// raising the pool are included.
    [[nodiscard]] std::vector<Added> added() const;

  private:
    class Pool;

    HugePageReservation() noexcept;
    /// Returns false if `stop` was requested first.
    bool reserve(const HugePageDemand& demand, const HugePageRoots& roots, std::chrono::milliseconds patience,
                 const std::stop_token& stop);
    void give_back() noexcept;

    UniqueFd turn_;
    std::vector<Pool> pools_; ///< what was raised, in this order
};

} // namespace vmm::prefault
