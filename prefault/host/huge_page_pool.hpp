// The host's pools of huge pages: what they hold, whether that is enough, and how to raise them for a run.
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

/// The files and folders in which the host describes its pools. The defaults are the kernel's own places.
struct HugePageRoots {
    std::string mm = "/sys/kernel/mm";
    std::string nodes = "/sys/devices/system/node";
    std::string meminfo = "/proc/meminfo";
    CgroupRoots cgroups;
    /// If set, it is called with a pool's file and the new count, and nothing is written to that file. It is for files
    /// that have no kernel behind them. Must not throw. Empty: counts are written.
    std::function<void(const std::string& file, std::uint64_t pages)> write_count;
};

/// One NUMA node's part of a pool, in pages. The kernel does not count reserved pages by node.
struct NodeHugePages {
    unsigned node = 0;
    std::uint64_t total = 0; ///< including surplus
    std::uint64_t free = 0;
    std::uint64_t surplus = 0;
};

/// One pool (Documentation/admin-guide/mm/hugetlbpage.rst), in pages.
struct HugePagePool {
    std::uint64_t page_bytes = 0;
    std::uint64_t total = 0; ///< including surplus
    std::uint64_t free = 0;
    std::uint64_t reserved = 0;       ///< free pages that are promised to existing mappings
    std::uint64_t surplus = 0;        ///< made on demand, beyond the size set for the pool; they go when they are freed
    std::uint64_t overcommit = 0;     ///< how many more pages the kernel may make on demand
    std::vector<NodeHugePages> nodes; ///< in ascending order; empty if the kernel does not count by node

    /// The pages that a new mapping is certain to get.
    [[nodiscard]] std::uint64_t available() const noexcept { return free > reserved ? free - reserved : 0; }
    /// The pages that a new mapping can get from one node; 0 if there is no such node. The kernel does not say from
    /// which node a reserved page will be taken, so only reserved pages that do not fit on the other nodes count
    /// against this one.
    [[nodiscard]] std::uint64_t available_on(unsigned node) const noexcept;
    /// The node's part; null if there is none.
    [[nodiscard]] const NodeHugePages* find_node(unsigned node) const noexcept;
};

/// The pool for pages of `page_bytes`; nothing if this host has no such page size.
[[nodiscard]] std::optional<HugePagePool> read_huge_page_pool(std::uint64_t page_bytes,
                                                              const HugePageRoots& roots = {});

/// The pools of all sizes that this host has, smallest pages first.
[[nodiscard]] std::vector<HugePagePool> read_huge_page_pools(const HugePageRoots& roots = {});

/// True if this process may change the size of that pool. The function asks the kernel, because root of a user
/// namespace is not enough.
[[nodiscard]] bool may_raise_huge_page_pool(std::uint64_t page_bytes, const HugePageRoots& roots = {});

/// A control group's limit on huge pages of one size (Documentation/admin-guide/cgroup-v2.rst, HugeTLB; v1:
/// cgroup-v1/hugetlb.rst), in bytes.
struct HugePageCgroupLimit {
    std::string file; ///< the file that sets the limit
    std::uint64_t limit_bytes = 0;
    std::uint64_t used_bytes = 0;

    /// The bytes that may still be taken.
    [[nodiscard]] std::uint64_t remaining_bytes() const noexcept {
        return limit_bytes > used_bytes ? limit_bytes - used_bytes : 0;
    }
};

/// The limit on pages of `page_bytes` that leaves this process the least; nothing if there is no limit. Limits hold for
/// pages in use and for reserved pages, in the process's own groups and in those above.
[[nodiscard]] std::optional<HugePageCgroupLimit> read_huge_page_cgroup_limit(std::uint64_t page_bytes,
                                                                             const HugePageRoots& roots = {});

/// A part of guest memory, and the node of its pages.
struct HugePageShare {
    std::optional<unsigned> node; ///< nothing: any node
    std::uint64_t bytes = 0;      ///< a part of a page counts as a whole page
};

/// The pages that a guest needs from the pool. Several shares of one node are added up.
struct HugePageDemand {
    PageSize page_size = PageSize::k2M;
    std::vector<HugePageShare> shares;
    /// Whether a HugePageReservation will supply the missing pages. If so, a shortage is no error as long as the pool
    /// can be raised.
    bool will_be_raised = false;
};

/// Throws Error if the pool cannot satisfy `demand`. The error says how many pages are needed and on which node, how
/// many are free or reserved by others, whether the control group limits them, and how to raise what is too low.
/// Changes nothing, and does nothing for kThp and k4K. Must be called before anything is created.
void check_huge_page_pool(const HugePageDemand& demand, const HugePageRoots& roots = {});

/// As above, for `bytes` from any node.
void check_huge_page_pool(PageSize page_size, std::uint64_t bytes, const HugePageRoots& roots = {});

/// Raises the pool by the pages that a demand lacks, and gives them back when it ends. Needs root.
///
/// Other processes may change the pool meanwhile, so the pool is finally lowered by the number of pages that was added
/// here, whatever its size is then. Pages that are still mapped stay with their owner as surplus, and go away when they
/// are unmapped. The files are held open, so privileges may be dropped after construction. If the process is killed,
/// the pool stays raised until somebody lowers it.
///
/// Until release_turn(), other reservations of the same page size wait, so that nobody counts on free pages that this
/// process has not mapped yet. Processes that raise the pool by other means do not wait.
///
/// Threads: one at a time.
class HugePageReservation {
  public:
    /// The time limit for waiting on other reservations.
    static constexpr std::chrono::seconds kPatience{60};

    /// The pages that were added to one pool.
    struct Added {
        std::optional<unsigned> node; ///< nothing: the pool of all nodes
        std::uint64_t pages = 0;
    };

    /// Does nothing for kThp and k4K, or if there are enough pages already. Throws Error, with everything given back:
    /// what check_huge_page_pool() throws, no right to raise the pool, fewer pages than asked for (memory is
    /// fragmented), or another reservation that does not end within `patience`.
    explicit HugePageReservation(const HugePageDemand& demand, const HugePageRoots& roots = {},
                                 std::chrono::milliseconds patience = kPatience);

    /// Like the constructor, but gives everything back and returns nothing if `stop` is requested first. A stop is
    /// noticed between two steps of 1 GiB (at least one page), and while it waits for others.
    [[nodiscard]] static std::optional<HugePageReservation>
    unless_stopped(const std::stop_token& stop, const HugePageDemand& demand, const HugePageRoots& roots = {},
                   std::chrono::milliseconds patience = kPatience);

    HugePageReservation(HugePageReservation&& other) noexcept;
    HugePageReservation& operator=(HugePageReservation&& other) noexcept;
    HugePageReservation(const HugePageReservation&) = delete;
    HugePageReservation& operator=(const HugePageReservation&) = delete;
    /// Gives back what was added. Waits at most one second for a process that is changing the pool at that moment.
    ~HugePageReservation();

    /// Lets others reserve. Should be called as soon as the memory is mapped; the memory need not be populated yet.
    void release_turn() noexcept { turn_.reset(); }

    /// What was added, by pool, nodes first; empty if nothing was missing. It includes surplus pages that became
    /// permanent when the pool was raised.
    [[nodiscard]] std::vector<Added> added() const;

  private:
    class Pool;

    HugePageReservation() noexcept;
    /// Returns false if `stop` was requested first.
    bool reserve(const HugePageDemand& demand, const HugePageRoots& roots, std::chrono::milliseconds patience,
                 const std::stop_token& stop);
    void give_back() noexcept;

    UniqueFd turn_;
    std::vector<Pool> pools_; ///< the pools that were raised, in this order
};

} // namespace vmm::prefault
