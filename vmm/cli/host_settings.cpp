#include "vmm/cli/host_settings.hpp"

#include <sys/prctl.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>

#include "kvm/host/cgroup.hpp"
#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/guest_memory.hpp"
#include "prefault/host/longterm_pin.hpp"
#include "prefault/host/numa.hpp"
#include "prefault/x86/second_level_host.hpp"
#include "vmm/host/memory_facts.hpp"

#ifndef PR_GET_MEMORY_MERGE
#define PR_GET_MEMORY_MERGE 68 // Linux 6.4
#endif

namespace vmm {

namespace {

namespace fs = std::filesystem;
using Verdict = Finding::Verdict;

std::optional<std::string> first_line(const fs::path& path) {
    std::ifstream file(path);
    std::string line;
    return std::getline(file, line) ? std::optional(line) : std::nullopt;
}

std::optional<std::uint64_t> number(const fs::path& path) {
    std::ifstream file(path);
    std::uint64_t value = 0;
    return file >> value ? std::optional(value) : std::nullopt;
}

/// Whether a setting is on. Module parameters use Y or 1 for true. Some files of sysfs use "true".
bool is_on(const fs::path& path) {
    const std::string value = first_line(path).value_or("");
    return value == "Y" || value == "1" || value == "true";
}

/// The word in brackets of a list such as "always [madvise] never"; empty if there is none.
std::string chosen_word(const fs::path& path) {
    const std::string words = first_line(path).value_or("");
    const std::size_t open = words.find('[');
    const std::size_t close = words.find(']', open == std::string::npos ? 0 : open);
    return open == std::string::npos || close == std::string::npos ? "" : words.substr(open + 1, close - open - 1);
}

/// The command with which a person writes `value` into `path`.
std::string command_to_write(std::string_view value, const fs::path& path) {
    return vmm::format("`echo {} | sudo tee {}`", value, path.native());
}

Finding good(const std::string& what, const std::string& value) {
    return {Verdict::kGood, what, value, ""};
}

Finding advice(const std::string& what, const std::string& value, const std::string& text) {
    return {Verdict::kAdvice, what, value, text};
}

bool has_several_nodes(const SettingsSources& sources) {
    return prefault::NumaTopology::read((sources.sys / "devices/system/node").native(), sources.proc / "self/status")
               .nodes.size() > 1;
}

/// mm/ksm.c: ksm_madvise() can withdraw a mapping that was offered along with all memory of a process.
std::optional<Finding> examine_ksm(const SettingsSources& sources) {
    if (number(sources.sys / "kernel/mm/ksm/run").value_or(0) != 1) {
        return std::nullopt;
    }
    return good("same-page merging (KSM)",
                sources.merges_own_memory
                    ? "on, for all memory of this process (PR_SET_MEMORY_MERGE) but guest memory, which is kept from it"
                    : "on; guest memory is not offered to it");
}

/// Documentation/admin-guide/mm/transhuge.rst, "defrag" and "Khugepaged controls".
std::optional<Finding> examine_khugepaged(const SettingsSources& sources) {
    const fs::path thp = sources.sys / "kernel/mm/transparent_hugepage";
    const std::string enabled = chosen_word(thp / "enabled");
    if (enabled.empty() || enabled == "never") {
        return std::nullopt;
    }
    const std::string defrag = chosen_word(thp / "defrag");
    if (defrag == "never" || defrag == "defer") {
        return advice("khugepaged", vmm::format("on, and huge pages are not made on demand (defrag is {})", defrag),
                      "it replaces 4 KiB pages of a --page-size=thp guest while that runs; so that there are none: " +
                          command_to_write("madvise", thp / "defrag"));
    }
    return good("khugepaged", "on; it leaves huge pages alone, and all memory of --page-size=4K, 2M and 1G");
}

/// mm/huge_memory.c: thp_underused(), since Linux 6.12. The default of max_ptes_none is 511, which means never.
std::optional<Finding> examine_underused_huge_pages(const SettingsSources& sources) {
    constexpr std::uint64_t kNever = 511;
    const fs::path thp = sources.sys / "kernel/mm/transparent_hugepage";
    const std::string enabled = chosen_word(thp / "enabled");
    const std::uint64_t allowed = number(thp / "khugepaged/max_ptes_none").value_or(kNever);
    if (enabled.empty() || enabled == "never" || !is_on(thp / "shrink_underused") || allowed >= kNever) {
        return std::nullopt;
    }
    return advice("splitting of unused huge pages", vmm::format("on, above {} pages of zeros in one", allowed),
                  "when memory is short it splits huge pages the guest has not written yet: --pin=longterm or "
                  "--page-size=2M, or " +
                      command_to_write("0", thp / "shrink_underused"));
}

/// kernel/sched/fair.c: task_numa_work() passes over memory whose policy lacks MPOL_F_MOF.
std::optional<Finding> examine_numa_balancing(const SettingsSources& sources) {
    if (number(sources.proc / "sys/kernel/numa_balancing").value_or(0) == 0 || !has_several_nodes(sources)) {
        return std::nullopt;
    }
    return good("NUMA balancing", "on; guest memory has a policy of its own, which keeps it out");
}

/// mm/vmscan.c: can_demote().
std::optional<Finding> examine_demotion(const SettingsSources& sources) {
    const fs::path demotion = sources.sys / "kernel/mm/numa/demotion_enabled";
    if (!is_on(demotion) || !has_several_nodes(sources)) {
        return std::nullopt;
    }
    return advice("demotion to slower memory", "on",
                  "guest pages that are not locked may be moved: --pin=mlock, or " +
                      command_to_write("false", demotion));
}

/// mm/compaction.c: isolate_migratepages_block().
std::optional<Finding> examine_compaction(const SettingsSources& sources) {
    const std::uint64_t proactiveness = number(sources.proc / "sys/vm/compaction_proactiveness").value_or(0);
    const bool locked_too = number(sources.proc / "sys/vm/compact_unevictable_allowed").value_or(0) != 0;
    if (!locked_too && proactiveness == 0) {
        return std::nullopt;
    }
    const std::string value = vmm::format(
        "{}, {}", proactiveness != 0 ? vmm::format("in the background (proactiveness {})", proactiveness) : "on demand",
        locked_too ? "locked pages, too" : "but not of locked pages");
    if (!locked_too) {
        return good("compaction", value);
    }
    std::string commands = "sudo sysctl vm.compact_unevictable_allowed=0";
    if (proactiveness != 0) {
        commands += " vm.compaction_proactiveness=0";
    }
    return advice("compaction", value,
                  vmm::format("it moves 4 KiB pages: huge ones, --pin=longterm, or --pin=mlock with `{}`", commands));
}

/// Documentation/admin-guide/hw-vuln/multihit.rst; arch/x86/kvm/mmu/mmu.c: kvm_recover_nx_huge_pages().
std::optional<Finding> examine_executable_huge_pages(const SettingsSources& sources) {
    const fs::path parameters = sources.sys / "module/kvm/parameters";
    if (!is_on(parameters / "nx_huge_pages")) {
        return std::nullopt;
    }
    constexpr std::uint64_t kHourMs = 3'600'000;
    const fs::path ratio_file = parameters / "nx_huge_pages_recovery_ratio";
    const std::uint64_t ratio = number(ratio_file).value_or(0);
    const std::uint64_t period_ms = number(parameters / "nx_huge_pages_recovery_period_ms").value_or(0);
    const std::uint64_t every_ms = period_ms != 0 || ratio == 0 ? period_ms : kHourMs / std::min(ratio, kHourMs / 1000);
    const std::string value =
        ratio == 0 ? "on, for good where it has split"
                   : vmm::format("on, and undone for 1/{} of the splits every {} s", ratio, (every_ms + 999) / 1000);
    const auto vulnerability = first_line(sources.sys / "devices/system/cpu/vulnerabilities/itlb_multihit");
    if (vulnerability && vulnerability->starts_with("Not affected")) {
        return advice("splitting of executable huge pages (nx_huge_pages)", value,
                      "this processor does not need it; before guests run: " +
                          command_to_write("off", parameters / "nx_huge_pages"));
    }
    return advice("splitting of executable huge pages (nx_huge_pages)", value,
                  "a guest faults where it first executes in a huge page: --page-size=4K" +
                      (ratio == 0 ? "" : "; against faulting again: " + command_to_write("0", ratio_file)));
}

std::optional<Finding> examine_swap(const SettingsSources& sources) {
    std::ifstream swaps(sources.proc / "swaps");
    std::string line;
    std::getline(swaps, line); // this line has the names of the columns
    std::size_t areas = 0;
    std::uint64_t bytes = 0;
    while (std::getline(swaps, line)) {
        std::istringstream columns(line);
        std::string name;
        std::string type;
        std::uint64_t kib = 0;
        if (columns >> name >> type >> kib) {
            ++areas;
            bytes += kib * kKiB;
        }
    }
    if (areas == 0) {
        return std::nullopt;
    }
    return advice("swap", vmm::format("{} in {} area{}", format_bytes(bytes), areas, areas == 1 ? "" : "s"),
                  "guest pages can be swapped out with --pin=none: leave it at mlock (2M and 1G pages never are), or "
                  "`sudo swapoff -a`");
}

/// mm/damon: the threads are called kdamond.N. If they are not visible, the administrator's interface is read.
std::optional<Finding> examine_damon(const SettingsSources& sources) {
    std::error_code ignored;
    std::size_t threads = 0;
    for (const auto& entry : fs::directory_iterator(sources.proc, ignored)) {
        const std::string name = entry.path().filename();
        if (!name.empty() && std::isdigit(static_cast<unsigned char>(name.front())) != 0) {
            threads += first_line(entry.path() / "comm").value_or("").starts_with("kdamond.") ? 1 : 0;
        }
    }
    const fs::path admin = sources.sys / "kernel/mm/damon/admin/kdamonds";
    std::size_t started = 0;
    std::string stop;
    for (const auto& entry : fs::directory_iterator(admin, ignored)) {
        if (first_line(entry.path() / "state").value_or("") == "on") {
            ++started;
            stop = command_to_write("off", entry.path() / "state");
        }
    }
    for (const char* const module : {"damon_reclaim", "damon_lru_sort", "damon_stat"}) {
        const fs::path enabled = sources.sys / "module" / module / "parameters/enabled";
        if (is_on(enabled)) {
            ++started;
            stop = command_to_write("N", enabled);
        }
    }
    const std::size_t monitors = std::max(threads, started);
    if (monitors == 0) {
        return std::nullopt;
    }
    return advice("access monitoring (DAMON)", vmm::format("{} running", monitors),
                  "it may act on guest pages, as by paging them out: --pin=mlock" +
                      (stop.empty() ? "" : ", or " + stop));
}

/// arch/x86/kvm/mmu/tdp_mmu.c: without these bits, ageing a page removes its access rights.
std::optional<Finding> examine_accessed_bits(const SettingsSources& sources) {
    const prefault::SecondLevelHost host = prefault::detect_second_level((sources.sys / "module").native());
    if (host.kind != prefault::SecondLevelKind::kEpt || host.accessed_dirty.value_or(true)) {
        return std::nullopt;
    }
    const std::string generations = first_line(sources.sys / "kernel/mm/lru_gen/enabled").value_or("0x0000");
    const bool walks = generations.find_first_not_of("0x") != std::string::npos;
    return advice("accessed bits in the second level", walks ? "off, and pages are aged by MGLRU" : "off",
                  "a page that is looked at for use faults afterwards: load kvm_intel with eptad=1 where the processor "
                  "can, or --pin=mlock against reclaim");
}

/// arch/x86/kvm/x86.c: when a guest enters x2APIC mode, kvm_vcpu_update_apicv() would delete the APIC page's memslot,
/// and with it all mappings. The timer's reinjection prevents AVIC (APICV_INHIBIT_REASON_PIT_REINJ).
std::optional<Finding> examine_avic(const SettingsSources& sources) {
    if (!is_on(sources.sys / "module/kvm_amd/parameters/avic")) {
        return std::nullopt;
    }
    return good("AVIC", "on; the in-kernel timer keeps our guests without it, and so without its APIC page");
}

/// Documentation/admin-guide/sysctl/kernel.rst.
std::optional<Finding> examine_io_uring(const SettingsSources& sources) {
    const std::uint64_t disabled = number(sources.proc / "sys/kernel/io_uring_disabled").value_or(0);
    if (disabled == 0 && sources.why_no_io_uring.empty()) {
        return std::nullopt;
    }
    if (disabled == 0 || (disabled == 1 && sources.why_no_io_uring.empty())) {
        return sources.why_no_io_uring.empty()
                   ? std::optional(good("io_uring", "for CAP_SYS_ADMIN and the group kernel.io_uring_group only, which "
                                                    "this process may use"))
                   : std::optional(advice("io_uring", "cannot be used here",
                                          "--pin=longterm needs it: " + sources.why_no_io_uring));
    }
    return advice("io_uring", disabled == 1 ? "for CAP_SYS_ADMIN and the group kernel.io_uring_group only" : "disabled",
                  "--pin=longterm needs it: `sudo sysctl kernel.io_uring_disabled=0`");
}

/// A file of a control group, and the limit in it, in bytes.
struct GroupLimit {
    fs::path file;
    std::uint64_t bytes = 0;
};

/// The smallest memory.high among the groups of this process. Version 1 does not have this limit.
std::optional<GroupLimit> smallest_memory_high(const CgroupRoots& roots) {
    std::optional<GroupLimit> smallest;
    for (const CgroupLineage& lineage : cgroup_lineages("memory", roots)) {
        for (const fs::path& folder : lineage.folders) {
            const auto bytes = read_cgroup_number(folder / "memory.high");
            if (bytes && (!smallest || *bytes < smallest->bytes)) {
                smallest = GroupLimit{folder / "memory.high", *bytes};
            }
        }
    }
    return smallest;
}

/// Documentation/admin-guide/cgroup-v2.rst, memory.high and memory.max.
std::optional<Finding> examine_memory_group(const SettingsSources& sources) {
    const CgroupRoots roots{sources.proc / "self/cgroup", sources.sys / "fs/cgroup"};
    const auto most = read_memory_cgroup_limit(roots);
    const auto high = smallest_memory_high(roots);
    if (high && (!most || high->bytes < *most)) {
        return advice("control group", "reclaims above " + format_bytes(high->bytes) + " (memory.high)",
                      "a larger guest is throttled, and loses pages that are not locked: " +
                          command_to_write("max", high->file));
    }
    return most ? std::optional(good("control group", "at most " + format_bytes(*most))) : std::nullopt;
}

/// Documentation/admin-guide/mm/transhuge.rst, "Shmem control".
std::optional<Finding> examine_warm_memory(const SettingsSources& sources) {
    const fs::path file = sources.sys / "kernel/mm/transparent_hugepage/shmem_enabled";
    const std::string word = chosen_word(file);
    if (word.empty()) {
        return std::nullopt;
    }
    const bool has_none = word == "never" || word == "deny";
    return good("warm memory",
                has_none ? vmm::format("2M and 4K; for vmm pool --page-size=thp: {}", command_to_write("advise", file))
                         : std::string("2M, 4K and thp"));
}

constexpr std::array kExaminations{
    &examine_executable_huge_pages, &examine_swap, &examine_memory_group,   &examine_compaction, &examine_khugepaged,
    &examine_underused_huge_pages,  &examine_ksm,  &examine_numa_balancing, &examine_demotion,   &examine_damon,
    &examine_accessed_bits,         &examine_avic, &examine_io_uring,       &examine_warm_memory};

} // namespace

std::string why_no_io_uring() {
    try {
        const prefault::BufferRing probe(1);
    } catch (const Error& error) {
        return error.what();
    }
    return {};
}

bool merges_own_memory() noexcept {
    return ::prctl(PR_GET_MEMORY_MERGE, 0UL, 0UL, 0UL, 0UL) == 1;
}

std::vector<Finding> examine_settings(const SettingsSources& sources) {
    std::vector<Finding> findings;
    for (const auto& examine : kExaminations) {
        if (auto finding = examine(sources)) {
            findings.push_back(std::move(*finding));
        }
    }
    if (findings.empty()) {
        findings.push_back(good("what takes mappings away", "nothing seen that is switched on"));
    }
    return findings;
}

} // namespace vmm
