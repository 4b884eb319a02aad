#include "prefault/host/huge_page_pool.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <map>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

#include "kvm/host/error.hpp"

namespace vmm::prefault {

namespace {

std::optional<std::uint64_t> read_number(const std::string& path) {
    std::ifstream file(path);
    std::uint64_t value = 0;
    return file >> value ? std::optional(value) : std::nullopt;
}

/// The number between `prefix` and `suffix` in `name`; nothing if there is anything else.
std::optional<std::uint64_t> number_in(std::string_view name, std::string_view prefix, std::string_view suffix) {
    if (name.size() <= prefix.size() + suffix.size() || !name.starts_with(prefix) || !name.ends_with(suffix)) {
        return std::nullopt;
    }
    const std::string_view digits = name.substr(prefix.size(), name.size() - prefix.size() - suffix.size());
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    return error == std::errc() && end == digits.data() + digits.size() ? std::optional(value) : std::nullopt;
}

/// The numbers in the names of the entries of `folder`, ascending; empty if it cannot be read.
std::vector<std::uint64_t> numbered_entries(const std::string& folder, std::string_view prefix,
                                            std::string_view suffix) {
    std::vector<std::uint64_t> numbers;
    std::error_code error;
    std::filesystem::directory_iterator entry(folder, error);
    for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
        if (const auto number = number_in(entry->path().filename().native(), prefix, suffix)) {
            numbers.push_back(*number);
        }
    }
    std::ranges::sort(numbers);
    return numbers;
}

/// The folder of the pool of all nodes or of one node, with a slash at the end.
std::string pool_directory(std::uint64_t page_bytes, std::optional<std::uint64_t> node, const HugePageRoots& roots) {
    const std::string above = node ? roots.nodes + "/node" + std::to_string(*node) : roots.mm;
    return above + "/hugepages/hugepages-" + std::to_string(page_bytes / kKiB) + "kB/";
}

std::vector<NodeHugePages> read_nodes(std::uint64_t page_bytes, const HugePageRoots& roots) {
    std::vector<NodeHugePages> nodes;
    for (const std::uint64_t number : numbered_entries(roots.nodes, "node", "")) {
        const std::string directory = pool_directory(page_bytes, number, roots);
        if (const auto total = read_number(directory + "nr_hugepages")) {
            nodes.push_back({static_cast<unsigned>(number), *total,
                             read_number(directory + "free_hugepages").value_or(0),
                             read_number(directory + "surplus_hugepages").value_or(0)});
        }
    }
    return nodes;
}

/// "2MB", as the kernel names the files of the hugetlb controller.
std::string cgroup_size_name(std::uint64_t page_bytes) {
    if (page_bytes >= kGiB) {
        return std::to_string(page_bytes / kGiB) + "GB";
    }
    return page_bytes >= kMiB ? std::to_string(page_bytes / kMiB) + "MB" : std::to_string(page_bytes / kKiB) + "KB";
}

/// The size as it is written on a kernel's command line: "2M".
std::string boot_size_name(std::uint64_t page_bytes) {
    return page_bytes >= kGiB ? std::to_string(page_bytes / kGiB) + "G" : std::to_string(page_bytes / kMiB) + "M";
}

std::uint64_t pages_for(std::uint64_t bytes, std::uint64_t page_bytes) {
    return (bytes / page_bytes) + (bytes % page_bytes != 0 ? 1 : 0);
}

/// The number of pages that are needed from one node or from any, and the number of them that are missing.
struct Need {
    std::optional<unsigned> node;
    std::uint64_t pages = 0;
    std::uint64_t missing = 0;
};

/// One entry for each node, then one for any node; `missing` is 0 in all.
std::vector<Need> needs_of(const HugePageDemand& demand, std::uint64_t page_bytes) {
    std::map<unsigned, std::uint64_t> by_node;
    std::uint64_t from_any = 0;
    for (const HugePageShare& share : demand.shares) {
        (share.node ? by_node[*share.node] : from_any) += pages_for(share.bytes, page_bytes);
    }
    std::vector<Need> needs;
    needs.reserve(by_node.size() + 1);
    for (const auto& [node, pages] : by_node) {
        needs.push_back({node, pages, 0});
    }
    needs.push_back({std::nullopt, from_any, 0});
    std::erase_if(needs, [](const Need& need) { return need.pages == 0; });
    return needs;
}

std::uint64_t total_pages(const std::vector<Need>& needs) {
    std::uint64_t pages = 0;
    for (const Need& need : needs) {
        pages += need.pages;
    }
    return pages;
}

/// Sets `missing` of each need. Pages that the kernel may make on demand count only with `overcommit`.
void find_missing(std::vector<Need>& needs, const HugePagePool& pool, bool overcommit) {
    // A node and the whole pool are two limits, because free pages of a node may be promised to another process.
    std::uint64_t there = pool.available();
    std::uint64_t on_demand = overcommit ? pool.overcommit : 0;
    for (Need& need : needs) {
        const std::uint64_t usable = std::min({need.pages, there, need.node ? pool.available_on(*need.node) : there});
        const std::uint64_t made = std::min(need.pages - usable, on_demand);
        there -= usable;
        on_demand -= made;
        need.missing = need.pages - usable - made;
    }
}

std::string on_node(std::optional<unsigned> node) {
    return node ? " on node " + std::to_string(*node) : "";
}

/// "255 free of 300, besides 5 that others have reserved".
std::string describe(const HugePagePool& pool) {
    return std::to_string(pool.available()) + " free of " + std::to_string(pool.total) +
           (pool.reserved != 0 ? ", besides " + std::to_string(pool.reserved) + " that others have reserved" : "");
}

std::string tried_to_reserve(std::uint64_t pages, std::uint64_t page_bytes, std::optional<unsigned> node) {
    return "cannot reserve " + std::to_string(pages) + " huge pages of " + format_bytes(page_bytes) + on_node(node);
}

[[noreturn]] void throw_shortage(const Need& need, const HugePagePool& pool, const HugePageRoots& roots) {
    std::string why = "the pool has " + describe(pool);
    std::uint64_t total = pool.total;
    if (need.node) {
        const NodeHugePages* const node = pool.find_node(*need.node);
        why = "the node has " + std::to_string(pool.available_on(*need.node)) + " free of " +
              std::to_string(node->total) + "; all nodes together have " + describe(pool);
        total = node->total;
    }
    // The kernel turns surplus pages into permanent ones before it makes new ones, so the sum includes all existing
    // pages.
    throw Error(tried_to_reserve(need.pages, pool.page_bytes, need.node) + ": " + why + " (raise it: `echo " +
                std::to_string(total + need.missing) + " | sudo tee " +
                pool_directory(pool.page_bytes, need.node, roots) +
                "nr_hugepages`, or take Config::reserve_huge_pages as root, or Config::page_size=thp)");
}

void check_nodes(const std::vector<Need>& needs, const HugePagePool& pool) {
    for (const Need& need : needs) {
        if (need.node && pool.find_node(*need.node) == nullptr) {
            std::string known;
            for (const NodeHugePages& node : pool.nodes) {
                known += (known.empty() ? "" : ", ") + std::to_string(node.node);
            }
            throw Error(tried_to_reserve(need.pages, pool.page_bytes, need.node) +
                        ": this host has no such node with huge pages (" +
                        (known.empty() ? "it does not count them by node" : "it has " + known) + ")");
        }
    }
}

void check_cgroup(std::uint64_t pages, const HugePagePool& pool, const HugePageRoots& roots) {
    const auto limit = read_huge_page_cgroup_limit(pool.page_bytes, roots);
    if (!limit || pages <= limit->remaining_bytes() / pool.page_bytes) {
        return;
    }
    throw Error(tried_to_reserve(pages, pool.page_bytes, std::nullopt) +
                ": the control group of this process may take " + format_bytes(limit->remaining_bytes()) +
                " more of them, with " + format_bytes(limit->used_bytes) + " of " + format_bytes(limit->limit_bytes) +
                " in use; the pool has " + describe(pool) + " (raise the group's limit: `echo " +
                std::to_string(limit->used_bytes + (pages * pool.page_bytes)) + " | sudo tee " + limit->file +
                "`, or take Config::page_size=thp)");
}

/// The memory that is available without swapping, in bytes; nothing if that cannot be read.
std::optional<std::uint64_t> available_memory_bytes(const HugePageRoots& roots) {
    std::ifstream meminfo(roots.meminfo);
    std::string name;
    std::uint64_t kib = 0;
    std::string rest;
    while (meminfo >> name >> kib && std::getline(meminfo, rest)) {
        if (name == "MemAvailable:") {
            return kib * kKiB;
        }
    }
    return std::nullopt;
}

constexpr std::array kRaiseAdvice{
    ErrnoAdvice{
        EACCES,
        "Config::reserve_huge_pages needs root of the host: let root raise the pool, or take Config::page_size=thp"},
    ErrnoAdvice{
        EPERM,
        "Config::reserve_huge_pages needs root of the host: let root raise the pool, or take Config::page_size=thp"},
    ErrnoAdvice{EROFS, "sysfs is mounted read-only here, as containers have it: raise the pool outside, or take "
                       "Config::page_size=thp"},
    ErrnoAdvice{EINVAL, "this kernel makes pages of that size only when it boots: hugepagesz= and hugepages="},
    ErrnoAdvice{ENOENT, "this host has no pool of that size there: take another Config::page_size"}};

/// Throws Error if there is no memory for the missing pages. The kernel would try to make them, and starve all others
/// meanwhile.
void check_can_raise(const std::vector<Need>& needs, const HugePagePool& pool, const HugePageRoots& roots) {
    std::uint64_t missing = 0;
    for (const Need& need : needs) {
        missing += need.missing;
        const std::string path = pool_directory(pool.page_bytes, need.node, roots) + "nr_hugepages";
        if (need.missing != 0 && ::faccessat(AT_FDCWD, path.c_str(), W_OK, AT_EACCESS) != 0) {
            throw_errno(errno, "raise the pool of huge pages: write " + path, kRaiseAdvice);
        }
    }
    if (const auto bytes = available_memory_bytes(roots); bytes && missing > *bytes / pool.page_bytes) {
        throw Error("cannot raise the pool by " + std::to_string(missing) + " huge pages of " +
                    format_bytes(pool.page_bytes) + ": this host has " + format_bytes(*bytes) +
                    " of memory available (less memory with Config::memory_bytes, or free some)");
    }
}

/// Locks `fd`'s file against all other processes. Returns 0 or a value of errno, which is EWOULDBLOCK if `patience` ran
/// out or `stop` was requested.
int lock_exclusively(int fd, std::chrono::milliseconds patience, const std::stop_token& stop) {
    // The lock is polled, because any user may lock a readable file, and a blocking wait would not notice a stop.
    constexpr std::chrono::milliseconds kPause{5};
    const auto deadline = std::chrono::steady_clock::now() + patience;
    while (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK && errno != EINTR) {
            return errno;
        }
        if (stop.stop_requested() || std::chrono::steady_clock::now() >= deadline) {
            return EWOULDBLOCK;
        }
        std::this_thread::sleep_for(kPause);
    }
    return 0;
}

/// A lock that is held only while one count is read and written.
class UpdateLock {
  public:
    UpdateLock(int fd, std::chrono::milliseconds patience) noexcept
        : fd_(fd), error_(lock_exclusively(fd, patience, {})) {}
    ~UpdateLock() {
        if (is_held()) {
            ::flock(fd_, LOCK_UN);
        }
    }
    UpdateLock(const UpdateLock&) = delete;
    UpdateLock(UpdateLock&&) = delete;
    UpdateLock& operator=(const UpdateLock&) = delete;
    UpdateLock& operator=(UpdateLock&&) = delete;
    [[nodiscard]] bool is_held() const noexcept { return error_ == 0; }
    /// Why the lock is not held: EWOULDBLOCK if another process has it.
    [[nodiscard]] int error() const noexcept { return error_; }

  private:
    int fd_;
    int error_;
};

UniqueFd open_or_throw(const std::string& path, int flags) {
    UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC));
    if (!fd) {
        throw_errno(errno, "raise the pool of huge pages: open " + path, kRaiseAdvice);
    }
    return fd;
}

/// The number at the start of an open file; 0 if there is none.
std::uint64_t read_number(int fd) noexcept {
    std::array<char, 32> text{};
    const ssize_t size = ::pread(fd, text.data(), text.size(), 0);
    std::uint64_t value = 0;
    std::from_chars(text.data(), text.data() + std::max<ssize_t>(size, 0), value);
    return value;
}

} // namespace

const NodeHugePages* HugePagePool::find_node(unsigned node) const noexcept {
    const auto found = std::ranges::find(nodes, node, &NodeHugePages::node);
    return found == nodes.end() ? nullptr : &*found;
}

std::uint64_t HugePagePool::available_on(unsigned node) const noexcept {
    const NodeHugePages* const part = find_node(node);
    if (part == nullptr) {
        return 0;
    }
    const std::uint64_t elsewhere = free > part->free ? free - part->free : 0;
    const std::uint64_t promised_here = reserved > elsewhere ? reserved - elsewhere : 0;
    return part->free > promised_here ? part->free - promised_here : 0;
}

std::optional<HugePagePool> read_huge_page_pool(std::uint64_t page_bytes, const HugePageRoots& roots) {
    const std::string directory = pool_directory(page_bytes, std::nullopt, roots);
    const auto total = read_number(directory + "nr_hugepages");
    if (!total) {
        return std::nullopt;
    }
    HugePagePool pool;
    pool.page_bytes = page_bytes;
    pool.total = *total;
    pool.free = read_number(directory + "free_hugepages").value_or(0);
    pool.reserved = read_number(directory + "resv_hugepages").value_or(0);
    pool.surplus = read_number(directory + "surplus_hugepages").value_or(0);
    const std::uint64_t limit = read_number(directory + "nr_overcommit_hugepages").value_or(0);
    pool.overcommit = limit > pool.surplus ? limit - pool.surplus : 0;
    pool.nodes = read_nodes(page_bytes, roots);
    return pool;
}

bool may_raise_huge_page_pool(std::uint64_t page_bytes, const HugePageRoots& roots) {
    const std::string path = pool_directory(page_bytes, std::nullopt, roots) + "nr_hugepages";
    return ::faccessat(AT_FDCWD, path.c_str(), W_OK, AT_EACCESS) == 0;
}

std::vector<HugePagePool> read_huge_page_pools(const HugePageRoots& roots) {
    std::vector<HugePagePool> pools;
    for (const std::uint64_t kib : numbered_entries(roots.mm + "/hugepages", "hugepages-", "kB")) {
        if (auto pool = read_huge_page_pool(kib * kKiB, roots)) {
            pools.push_back(std::move(*pool));
        }
    }
    return pools;
}

std::optional<HugePageCgroupLimit> read_huge_page_cgroup_limit(std::uint64_t page_bytes, const HugePageRoots& roots) {
    struct Names {
        const char* limit;
        const char* used;
    };
    constexpr std::array kVersion2{Names{".max", ".current"}, Names{".rsvd.max", ".rsvd.current"}};
    constexpr std::array kVersion1{Names{".limit_in_bytes", ".usage_in_bytes"},
                                   Names{".rsvd.limit_in_bytes", ".rsvd.usage_in_bytes"}};
    std::optional<HugePageCgroupLimit> tightest;
    for (const CgroupLineage& lineage : cgroup_lineages("hugetlb", roots.cgroups)) {
        for (const Names& names : lineage.version == CgroupLineage::Version::k2 ? kVersion2 : kVersion1) {
            for (const std::filesystem::path& folder : lineage.folders) {
                const std::string file = folder / ("hugetlb." + cgroup_size_name(page_bytes));
                const auto limit = read_cgroup_number(file + names.limit);
                if (!limit) {
                    continue;
                }
                HugePageCgroupLimit found{file + names.limit, *limit,
                                          read_cgroup_number(file + names.used).value_or(0)};
                if (!tightest || found.remaining_bytes() < tightest->remaining_bytes()) {
                    tightest = std::move(found);
                }
            }
        }
    }
    return tightest;
}

void check_huge_page_pool(const HugePageDemand& demand, const HugePageRoots& roots) {
    if (!is_from_pool(demand.page_size)) {
        return;
    }
    const std::uint64_t page_bytes = certain_page_bytes(demand.page_size);
    std::vector<Need> needs = needs_of(demand, page_bytes);
    const auto pool = read_huge_page_pool(page_bytes, roots);
    std::error_code ignored;
    if (!pool && !std::filesystem::exists(roots.mm, ignored)) {
        // Without sysfs, as in some containers, the pool is not known. The kernel reports a shortage when memory is
        // mapped.
        if (!demand.will_be_raised) {
            return;
        }
        throw Error(tried_to_reserve(total_pages(needs), page_bytes, std::nullopt) + ": " + roots.mm +
                    " is not there to raise the pool by (mount sysfs, or raise the pool outside and leave out "
                    "Config::reserve_huge_pages)");
    }
    if (!pool) {
        throw Error(tried_to_reserve(total_pages(needs), page_bytes, std::nullopt) +
                    ": this host has no pages of that size (take Config::page_size=2M or thp)");
    }
    check_nodes(needs, *pool);
    check_cgroup(total_pages(needs), *pool, roots);
    find_missing(needs, *pool, !demand.will_be_raised);
    if (demand.will_be_raised) {
        check_can_raise(needs, *pool, roots);
        return;
    }
    for (const Need& need : needs) {
        if (need.missing != 0) {
            throw_shortage(need, *pool, roots);
        }
    }
}

void check_huge_page_pool(PageSize page_size, std::uint64_t bytes, const HugePageRoots& roots) {
    check_huge_page_pool({page_size, {{std::nullopt, bytes}}, false}, roots);
}

/// A pool's file, open for writing, and the number of pages that was added through it.
class HugePageReservation::Pool {
  public:
    Pool(std::uint64_t page_bytes, std::optional<unsigned> node, const HugePageRoots& roots)
        : node_(node), path_(pool_directory(page_bytes, node, roots) + "nr_hugepages"),
          file_(open_or_throw(path_, O_RDWR)),
          surplus_(open_or_throw(pool_directory(page_bytes, node, roots) + "surplus_hugepages", O_RDONLY)),
          lock_(open_or_throw(pool_directory(page_bytes, std::nullopt, roots) + "nr_hugepages", O_RDONLY)),
          write_count_(roots.write_count) {}

    /// Asks for `pages` more and returns by how many the pool grew, which may be fewer. Throws Error.
    std::uint64_t raise(std::uint64_t pages, std::chrono::milliseconds patience) {
        const UpdateLock lock(lock_.get(), patience);
        if (!lock.is_held() && lock.error() != EWOULDBLOCK) {
            throw_errno(lock.error(), "lock " + path_ + " to raise the pool of huge pages");
        }
        if (!lock.is_held()) {
            throw Error("cannot raise the pool of huge pages: another process keeps " + path_ +
                        " locked (see lslocks)");
        }
        const Counts before = counts();
        const int error = write(before.total + pages);
        const Counts after = counts();
        // Surplus pages that became permanent are given back, too, although they did not make the pool larger.
        added_ += after.lasting() > before.lasting() ? after.lasting() - before.lasting() : 0;
        if (error != 0 && error != EINTR) {
            throw_errno(error, "raise the pool of huge pages: write " + path_, kRaiseAdvice);
        }
        return after.total > before.total ? after.total - before.total : 0;
    }

    void give_back() noexcept {
        if (added_ == 0) {
            return;
        }
        // The pool is lowered even without the lock: it is better to lose another process's change than memory.
        const UpdateLock lock(lock_.get(), std::chrono::seconds(1));
        const std::uint64_t now = counts().lasting();
        static_cast<void>(write(now > added_ ? now - added_ : 0));
        added_ = 0;
    }

    [[nodiscard]] Added added() const noexcept { return {node_, added_}; }

  private:
    struct Counts {
        std::uint64_t total;
        std::uint64_t surplus;
        /// The count that must be written to the file for the present size.
        [[nodiscard]] std::uint64_t lasting() const noexcept { return total > surplus ? total - surplus : 0; }
    };

    [[nodiscard]] Counts counts() const noexcept { return {read_number(file_.get()), read_number(surplus_.get())}; }

    /// Returns 0 or a value of errno.
    [[nodiscard]] int write(std::uint64_t pages) const noexcept {
        if (write_count_) {
            write_count_(path_, pages);
            return 0;
        }
        std::array<char, 32> text{};
        char* end = std::to_chars(text.data(), text.data() + text.size() - 1, pages).ptr;
        *end++ = '\n';
        return ::pwrite(file_.get(), text.data(), static_cast<std::size_t>(end - text.data()), 0) < 0 ? errno : 0;
    }

    std::optional<unsigned> node_;
    std::string path_;
    UniqueFd file_;
    UniqueFd surplus_;
    UniqueFd lock_; ///< on the file of all nodes, because every file changes the same pool
    std::function<void(const std::string&, std::uint64_t)> write_count_;
    std::uint64_t added_ = 0;
};

HugePageReservation::HugePageReservation() noexcept = default;

// The delegated constructor completes first, so that the destructor gives back what was raised if this one throws.
HugePageReservation::HugePageReservation(const HugePageDemand& demand, const HugePageRoots& roots,
                                         std::chrono::milliseconds patience)
    : HugePageReservation() {
    reserve(demand, roots, patience, {});
}

std::optional<HugePageReservation> HugePageReservation::unless_stopped(const std::stop_token& stop,
                                                                       const HugePageDemand& demand,
                                                                       const HugePageRoots& roots,
                                                                       std::chrono::milliseconds patience) {
    HugePageReservation reservation;
    if (!reservation.reserve(demand, roots, patience, stop)) {
        return std::nullopt;
    }
    return reservation;
}

HugePageReservation::HugePageReservation(HugePageReservation&& other) noexcept = default;

HugePageReservation& HugePageReservation::operator=(HugePageReservation&& other) noexcept {
    if (this != &other) {
        give_back();
        turn_ = std::move(other.turn_);
        pools_ = std::exchange(other.pools_, {});
    }
    return *this;
}

HugePageReservation::~HugePageReservation() {
    give_back();
}

bool HugePageReservation::reserve(const HugePageDemand& demand, const HugePageRoots& roots,
                                  std::chrono::milliseconds patience, const std::stop_token& stop) {
    HugePageDemand raised = demand;
    raised.will_be_raised = true;
    check_huge_page_pool(raised, roots);
    if (!is_from_pool(demand.page_size)) {
        return !stop.stop_requested();
    }
    const std::uint64_t page_bytes = certain_page_bytes(demand.page_size);
    const std::string directory = pool_directory(page_bytes, std::nullopt, roots);
    turn_ = open_or_throw(directory, O_RDONLY | O_DIRECTORY);
    if (const int error = lock_exclusively(turn_.get(), patience, stop); error != 0) {
        if (error != EWOULDBLOCK) {
            throw_errno(error, "lock " + directory + " to raise the pool of huge pages");
        }
        if (stop.stop_requested()) {
            return false;
        }
        throw Error("cannot reserve huge pages of " + format_bytes(page_bytes) +
                    ": another process is reserving some and has " + directory + " locked (see lslocks; try again)");
    }
    check_huge_page_pool(raised, roots); // Checked again, because another process may have had a turn meanwhile.
    const auto pool = read_huge_page_pool(page_bytes, roots);
    std::vector<Need> needs = needs_of(demand, page_bytes);
    find_missing(needs, pool.value_or(HugePagePool{}), false);

    // The kernel ends a raise early if a signal comes, and does not report that. So only a second failure means that
    // there is no memory.
    constexpr unsigned kFutileTries = 2;
    const std::uint64_t step = std::max<std::uint64_t>(kGiB / page_bytes, 1);
    for (const Need& need : needs) {
        if (need.missing == 0) {
            continue;
        }
        Pool& target = pools_.emplace_back(page_bytes, need.node, roots);
        std::uint64_t missing = need.missing;
        for (unsigned futile = 0; missing != 0;) {
            if (stop.stop_requested()) {
                return false;
            }
            const std::uint64_t got = target.raise(std::min(step, missing), patience);
            missing -= std::min(got, missing);
            futile = got == 0 ? futile + 1 : 0;
            if (futile == kFutileTries) {
                throw Error(
                    "cannot raise the pool by " + std::to_string(need.missing) + " huge pages of " +
                    format_bytes(page_bytes) + on_node(need.node) + ": the kernel gave " +
                    std::to_string(need.missing - missing) +
                    ", which it has back now; its free memory is too little or in too small pieces (try `echo 1 "
                    "| sudo tee /proc/sys/vm/compact_memory`, or boot with hugepagesz=" +
                    boot_size_name(page_bytes) + " hugepages=" + std::to_string(total_pages(needs)) +
                    ", or take Config::page_size=thp)");
            }
        }
    }
    return !stop.stop_requested();
}

void HugePageReservation::give_back() noexcept {
    for (Pool& pool : pools_) {
        pool.give_back();
    }
    pools_.clear();
    turn_.reset();
}

std::vector<HugePageReservation::Added> HugePageReservation::added() const {
    std::vector<Added> added;
    added.reserve(pools_.size());
    for (const Pool& pool : pools_) {
        added.push_back(pool.added());
    }
    return added;
}

} // namespace vmm::prefault
