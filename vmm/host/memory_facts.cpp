#include "vmm/host/memory_facts.hpp"

#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>

#include "kvm/host/format.hpp"
#include "kvm/host/guest_address.hpp"

namespace vmm {

namespace {

constexpr const char* kMeminfo = "/proc/meminfo";

/// Reads lines with a name and a number, as in memory.stat.
std::map<std::string, std::uint64_t> read_counters(const std::filesystem::path& file) {
    std::map<std::string, std::uint64_t> counters;
    std::ifstream stream(file);
    std::string name;
    std::uint64_t value = 0;
    while (stream >> name >> value) {
        counters.emplace(name, value);
    }
    return counters;
}

std::uint64_t value_of(const std::map<std::string, std::uint64_t>& counters, const std::string& name) {
    const auto found = counters.find(name);
    return found == counters.end() ? 0 : found->second;
}

std::uint64_t difference(std::uint64_t from, std::uint64_t taken) {
    return from > taken ? from - taken : 0;
}

MemoryGroup read_group_2(const std::filesystem::path& folder) {
    MemoryGroup group;
    group.limit_file = folder / "memory.max";
    group.limit = read_cgroup_number(group.limit_file);
    group.high_file = folder / "memory.high";
    group.high = read_cgroup_number(group.high_file);
    group.swap_limit = read_cgroup_number(folder / "memory.swap.max");
    group.swap_used = read_cgroup_number(folder / "memory.swap.current").value_or(0);
    const auto counters = read_counters(folder / "memory.stat");
    const std::uint64_t reclaimable = value_of(counters, "inactive_file") + value_of(counters, "active_file") +
                                      value_of(counters, "slab_reclaimable");
    group.used = difference(read_cgroup_number(folder / "memory.current").value_or(0), reclaimable);
    return group;
}

MemoryGroup read_group_1(const std::filesystem::path& folder) {
    MemoryGroup group;
    group.limit_file = folder / "memory.limit_in_bytes";
    group.limit = read_cgroup_number(group.limit_file);
    // These two count memory and swap together.
    const auto both_limit = read_cgroup_number(folder / "memory.memsw.limit_in_bytes");
    const std::uint64_t usage = read_cgroup_number(folder / "memory.usage_in_bytes").value_or(0);
    group.swap_used = difference(read_cgroup_number(folder / "memory.memsw.usage_in_bytes").value_or(0), usage);
    if (both_limit && group.limit) {
        group.swap_limit = difference(*both_limit, *group.limit);
    }
    const auto counters = read_counters(folder / "memory.stat");
    group.used = difference(usage, value_of(counters, "total_inactive_file") + value_of(counters, "total_active_file"));
    return group;
}

} // namespace

HostMemory read_host_memory(const std::string& meminfo) {
    HostMemory memory;
    std::ifstream stream(meminfo);
    for (std::string line; std::getline(stream, line);) { // A line is e.g. "MemTotal:       16214232 kB".
        const auto take = [&line](const std::string& name, std::optional<std::uint64_t>& into) {
            constexpr std::uint64_t kMostKib = UINT64_MAX / kKiB;
            if (!line.starts_with(name)) {
                return;
            }
            char* end = nullptr;
            const char* const digits = line.c_str() + name.size();
            const unsigned long long kib = std::strtoull(digits, &end, 10);
            if (end != digits && kib <= kMostKib) {
                into = kib * kKiB;
            }
        };
        take("MemTotal:", memory.total_bytes);
        take("MemAvailable:", memory.available_bytes);
        take("SwapFree:", memory.free_swap_bytes);
    }
    struct sysinfo host {};
    if (meminfo == kMeminfo && !memory.total_bytes && ::sysinfo(&host) == 0) { // This works without /proc, too.
        memory.total_bytes = std::uint64_t{host.totalram} * host.mem_unit;
        memory.free_swap_bytes = std::uint64_t{host.freeswap} * host.mem_unit;
    }
    return memory;
}

std::optional<std::uint64_t> MemoryGroup::left() const noexcept {
    return limit ? std::optional(difference(*limit, used)) : std::nullopt;
}

std::optional<std::uint64_t> MemoryGroup::left_below_high() const noexcept {
    return high ? std::optional(difference(*high, used)) : std::nullopt;
}

std::vector<MemoryGroup> read_memory_groups(const CgroupRoots& roots) {
    std::vector<MemoryGroup> groups;
    const bool counts_huge_pages = cgroup_memory_counts_huge_pages(roots);
    for (const CgroupLineage& lineage : cgroup_lineages("memory", roots)) {
        for (const std::filesystem::path& folder : lineage.folders) {
            const bool is_version_2 = lineage.version == CgroupLineage::Version::k2;
            MemoryGroup group = is_version_2 ? read_group_2(folder) : read_group_1(folder);
            group.counts_huge_pages = is_version_2 && counts_huge_pages;
            if (group.limit || group.high) {
                groups.push_back(std::move(group));
            }
        }
    }
    return groups;
}

std::optional<std::uint64_t> read_memory_cgroup_limit(const CgroupRoots& roots) {
    std::optional<std::uint64_t> smallest;
    for (const MemoryGroup& group : read_memory_groups(roots)) {
        if (group.limit) {
            smallest = std::min(smallest.value_or(*group.limit), *group.limit);
        }
    }
    return smallest;
}

MemoryFacts read_memory_facts(const MemorySources& sources) {
    MemoryFacts facts;
    facts.host = read_host_memory(sources.proc + "/meminfo");
    facts.groups = read_memory_groups(sources.cgroups);
    // The line has size, resident, shared, text, lib, data and dt, in pages (proc_pid_statm(5)). A value that cannot be
    // read counts as 0.
    std::ifstream statm(sources.proc + "/self/statm");
    const auto page_bytes = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
    std::uint64_t size = 0;
    std::uint64_t data = 0;
    std::uint64_t ignored = 0;
    if (!(statm >> size >> ignored >> ignored >> ignored >> ignored >> data)) {
        size = 0;
        data = 0;
    }
    const auto add = [&facts](__rlimit_resource_t resource, const char* name, const char* command, std::uint64_t used) {
        rlimit limit{};
        if (::getrlimit(resource, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
            facts.mapping_limits.push_back({name, command, limit.rlim_cur, used});
        }
    };
    add(RLIMIT_AS, "RLIMIT_AS", "ulimit -v", size * page_bytes);
    add(RLIMIT_DATA, "RLIMIT_DATA", "ulimit -d", data * page_bytes);
    return facts;
}

namespace {

/// "with 12 MiB of tables and of this program, 268 MiB are needed"
std::string describe_need(std::uint64_t guest, std::uint64_t beside) {
    return vmm::format("with {:.1f} MiB for tables and this program it takes {:.1f} MiB",
                       static_cast<double>(beside) / static_cast<double>(kMiB),
                       static_cast<double>(guest + beside) / static_cast<double>(kMiB));
}

std::string mib(std::uint64_t bytes) {
    return vmm::format("{:.1f} MiB", static_cast<double>(bytes) / static_cast<double>(kMiB));
}

std::string describe_group(std::uint64_t left, std::uint64_t limit, const std::string& file) {
    return vmm::format("the control group of this process has {} left of {}, the limit in {}", mib(left), mib(limit),
                       file);
}

/// Swap that the group may still use, in bytes.
std::uint64_t swap_left(const MemoryGroup& group, const HostMemory& host) {
    const std::uint64_t free = host.free_swap_bytes.value_or(0);
    return group.swap_limit ? std::min(free, difference(*group.swap_limit, group.swap_used)) : free;
}

std::string find_refusal(const MemoryNeed& need, const MemoryFacts& facts) {
    for (const MappingLimit& limit : facts.mapping_limits) {
        if (need.mapped > difference(limit.limit, limit.used)) {
            return vmm::format("{} of address space are needed, and this process has {} left ({}; raise `{}`, or take "
                               "less memory with Config::memory_bytes)",
                               mib(need.mapped), mib(difference(limit.limit, limit.used)), limit.name, limit.command);
        }
    }
    if (need.guest_ahead == 0 && need.pool_ahead == 0) {
        return {};
    }
    for (const MemoryGroup& group : facts.groups) {
        const std::uint64_t guest = need.guest_ahead + (group.counts_huge_pages ? need.pool_ahead : 0);
        if (guest == 0) {
            continue;
        }
        const std::string needed = describe_need(guest, need.beside);
        const std::uint64_t ahead = guest + need.beside;
        if (const auto left = group.left(); left && ahead > *left) {
            return vmm::format(
                "{}, and {} (raise its limit, take less with Config::memory_bytes, or Config::prefault.scope=none)",
                needed, describe_group(*left, *group.limit, group.limit_file));
        }
        if (const auto left = group.left_below_high(); left && ahead > *left) {
            return vmm::format("{}, and above its limit the kernel slows this process down: {} (raise it, take less "
                               "with Config::memory_bytes, or Config::prefault.scope=none)",
                               needed, describe_group(*left, *group.high, group.high_file));
        }
    }
    if (need.guest_ahead == 0) {
        return {};
    }
    const std::string needed = describe_need(need.guest_ahead, need.beside);
    if (facts.host.available_bytes && need.ahead() > *facts.host.available_bytes) {
        return vmm::format("{}, and this host has {} available{} (free some, take less with Config::memory_bytes, or "
                           "Config::prefault.scope=none)",
                           needed, mib(*facts.host.available_bytes),
                           facts.host.total_bytes ? " of " + mib(*facts.host.total_bytes) : "");
    }
    return {};
}

void add_warnings(const MemoryNeed& need, const MemoryFacts& facts, std::vector<std::string>& warnings) {
    for (const MemoryGroup& group : facts.groups) {
        const std::uint64_t swap = need.locked ? 0 : swap_left(group, facts.host);
        const std::uint64_t guest = need.guest + (group.counts_huge_pages ? need.pool : 0);
        const std::string needed = describe_need(guest, need.beside_all);
        const std::uint64_t all = guest + need.beside_all;
        if (const auto left = group.left(); left && all > *left && all - *left > swap) {
            warnings.push_back(
                vmm::format("the kernel may kill this program when the guest uses all of its memory: {}, and {}",
                            needed, describe_group(*left, *group.limit, group.limit_file)));
            return;
        }
        if (const auto left = group.left_below_high(); left && all > *left) {
            warnings.push_back(
                vmm::format("the kernel may slow the guest down when it uses all of its memory: {}, and {}", needed,
                            describe_group(*left, *group.high, group.high_file)));
            return;
        }
    }
    if (facts.host.available_bytes && need.guest > need.guest_ahead) {
        const std::uint64_t swap = need.locked ? 0 : facts.host.free_swap_bytes.value_or(0);
        if (need.all() > *facts.host.available_bytes && need.all() - *facts.host.available_bytes > swap) {
            warnings.push_back(
                vmm::format("the kernel may kill this program when the guest uses all of its memory: {}, and this host "
                            "has {} available",
                            describe_need(need.guest, need.beside_all), mib(*facts.host.available_bytes)));
        }
    }
}

} // namespace

MemoryVerdict judge_memory(const MemoryNeed& need, const MemoryFacts& facts) {
    MemoryVerdict verdict;
    verdict.refusal = find_refusal(need, facts);
    if (verdict.refusal.empty()) {
        add_warnings(need, facts, verdict.warnings);
    }
    return verdict;
}

std::optional<std::uint64_t> available_bytes(const MemoryFacts& facts) noexcept {
    std::optional<std::uint64_t> available = facts.host.available_bytes;
    const auto take = [&available](std::optional<std::uint64_t> left) {
        if (left) {
            available = std::min(available.value_or(*left), *left);
        }
    };
    for (const MemoryGroup& group : facts.groups) {
        take(group.left());
        take(group.left_below_high());
    }
    return available;
}

} // namespace vmm
