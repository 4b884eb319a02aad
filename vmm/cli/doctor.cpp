#include "vmm/cli/doctor.hpp"

#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <optional>

#include "devices/disk_io.hpp"
#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/thread.hpp"
#include "kvm/host/user_fault_fd.hpp"
#include "kvm/system.hpp"
#include "kvm/vm.hpp"
#include "prefault/host/cpu_list.hpp"
#include "prefault/host/huge_page_pool.hpp"
#include "prefault/host/numa.hpp"
#include "prefault/host/pin.hpp"
#include "prefault/x86/second_level_host.hpp"
#include "vmm/cli/commands.hpp"
#include "vmm/cli/host_settings.hpp"
#include "vmm/host/capabilities.hpp"
#include "vmm/host/memory_facts.hpp"
#include "vmm/machine/x86/cpuid.hpp"
#include "vmm/sandbox/landlock.hpp"
#include "vmm/sandbox/sandbox.hpp"

namespace vmm {

namespace {

using Verdict = Finding::Verdict;

std::optional<std::string> first_line(const std::string& path) {
    std::ifstream file(path);
    std::string line;
    return std::getline(file, line) ? std::optional(line) : std::nullopt;
}

void examine_kvm(std::vector<Finding>& findings) {
    const kvm::System system;
    findings.push_back({Verdict::kGood, "KVM",
                        vmm::format("API version {}, at most {} vCPUs a guest", KVM_API_VERSION, system.max_vcpus()),
                        ""});
    const kvm::Vm vm(system);
    for (const HostCapability& capability : kHostCapabilities) {
        const bool has = vm.extension(capability.number) != 0;
        const std::string missing =
            capability.needed ? "a guest cannot run without it: a newer kernel is needed (Linux 5.14 or later)" : "";
        findings.push_back({has || !capability.needed ? Verdict::kGood : Verdict::kFatal, capability.name,
                            has ? "yes" : "no", has ? "" : missing});
    }
    const auto cpuid = system.supported_cpuid();
    findings.push_back(
        {Verdict::kGood, "guest addresses",
         vmm::format("{} bits, 1 GiB pages {}", physical_address_bits(cpuid), has_one_gib_pages(cpuid) ? "yes" : "no"),
         ""});
}

constexpr const char* kUnknown = "unknown";

std::string describe_tdp_mmu(const std::optional<bool>& on) {
    return on ? (*on ? "on" : "off") : kUnknown;
}

/// The finding for a host that is itself a guest.
Finding nesting(prefault::SecondLevelKind kind) {
    const bool is_shadow = kind == prefault::SecondLevelKind::kShadow;
    return {Verdict::kAdvice, "nesting", "this host is itself a guest (CPUID has the hypervisor bit)",
            vmm::format("KVM's counts are of this host alone; what its own host maps is not known here. {}Have this "
                        "host's memory populated by its own host, too",
                        is_shadow
                            ? ""
                            : "--prefault-method=auto touches all memory, so that its own host maps it before the "
                              "guest starts. ")};
}

void examine_second_level(std::vector<Finding>& findings) {
    const prefault::SecondLevelHost host = prefault::detect_second_level();
    Finding finding{Verdict::kGood, "second level",
                    vmm::format("{}, TDP MMU {}", to_string(host.kind), describe_tdp_mmu(host.tdp_mmu)), ""};
    if (host.kind == prefault::SecondLevelKind::kShadow) {
        finding.verdict = Verdict::kAdvice;
        finding.advice =
            "shadow paging: only a guest that uses the prefault's own page tables (the built-in guest does) "
            "runs without faults; with kvm_amd npt=1 or kvm_intel ept=1 every guest does";
    } else if (host.kind == prefault::SecondLevelKind::kUnknown) {
        finding.verdict = Verdict::kAdvice;
        finding.advice = "neither KVM nor /sys/module says whether there is nested paging: mount sysfs";
    } else if (host.tdp_mmu == false) {
        finding.verdict = Verdict::kAdvice;
        finding.advice = "faults are handled one at a time: load kvm with tdp_mmu=1 (Linux 5.15 and later have it on)";
    }
    findings.push_back(finding);
    if (host.nested) {
        findings.push_back(nesting(host.kind));
    }
}

std::string format_or_unknown(const std::optional<std::uint64_t>& bytes) {
    return bytes ? format_bytes(*bytes) : kUnknown;
}

bool is_there(const std::filesystem::path& path) {
    std::error_code ignored;
    return std::filesystem::exists(path, ignored);
}

/// Describes a pool, including the pages that are made on demand, because a guest can have those, too.
Finding describe_pool(const prefault::HugePagePool& pool) {
    const std::uint64_t size = pool.page_bytes;
    Finding finding{Verdict::kGood, "huge pages of " + format_bytes(size),
                    vmm::format("{} available of {}", pool.available(), pool.total), ""};
    if (pool.surplus != 0) {
        finding.value += vmm::format(", of which {} are surplus and go when they are freed", pool.surplus);
    }
    if (pool.overcommit != 0) {
        finding.value += vmm::format(", and up to {} more on demand, if there is memory", pool.overcommit);
    }
    if (pool.total == 0 && pool.overcommit == 0) {
        finding.verdict = Verdict::kAdvice;
        finding.advice = vmm::format("for --page-size={}: `echo N | sudo tee "
                                     "/sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages`",
                                     size == kGiB ? "1G" : "2M", size / kKiB);
    }
    return finding;
}

void examine_huge_pages(const SettingsSources& sources, std::vector<Finding>& findings) {
    const std::filesystem::path mm = sources.sys / "kernel/mm";
    prefault::HugePageRoots roots;
    roots.mm = mm.native();
    roots.nodes = (sources.sys / "devices/system/node").native();
    roots.meminfo = (sources.proc / "meminfo").native();
    for (const std::uint64_t page_bytes : {2 * kMiB, kGiB}) {
        if (const auto pool = prefault::read_huge_page_pool(page_bytes, roots)) {
            findings.push_back(describe_pool(*pool));
        } else if (is_there(mm)) {
            findings.push_back({Verdict::kGood, "huge pages of " + format_bytes(page_bytes), "not on this host", ""});
        } else {
            findings.push_back({Verdict::kAdvice, "huge pages of " + format_bytes(page_bytes), kUnknown,
                                mm.native() + " cannot be read: mount sysfs"});
        }
    }
    const auto thp = first_line((mm / "transparent_hugepage/enabled").native());
    if (!thp && !is_there(mm)) {
        findings.push_back(
            {Verdict::kAdvice, "transparent huge pages", kUnknown, mm.native() + " cannot be read: mount sysfs"});
        return;
    }
    const bool thp_off = !thp || thp->find("[never]") != std::string::npos;
    findings.push_back({thp_off ? Verdict::kAdvice : Verdict::kGood, "transparent huge pages",
                        thp.value_or("not in this kernel"),
                        thp_off ? "--page-size=thp gives 4 KiB pages: `echo madvise | sudo tee "
                                  "/sys/kernel/mm/transparent_hugepage/enabled`"
                                : ""});
}

void examine_memory(const SettingsSources& sources, std::vector<Finding>& findings) {
    const MemoryFacts facts =
        read_memory_facts({sources.proc.native(), {sources.proc / "self/cgroup", sources.sys / "fs/cgroup"}});
    const HostMemory& memory = facts.host;
    Finding finding{Verdict::kGood, "memory",
                    vmm::format("{} available of {}", format_or_unknown(memory.available_bytes),
                                format_or_unknown(memory.total_bytes)),
                    ""};
    if (!memory.available_bytes) {
        finding.verdict = Verdict::kAdvice;
        finding.advice = (sources.proc / "meminfo").native() +
                         " does not say it: whether there is enough for a guest cannot be checked";
    }
    findings.push_back(finding);
    for (const MappingLimit& limit : facts.mapping_limits) {
        findings.push_back(
            {Verdict::kAdvice, vmm::format("mappings of this process ({})", limit.name),
             vmm::format("at most {}, of which {} are in use", format_bytes(limit.limit), format_bytes(limit.used)),
             vmm::format("a larger guest is refused: `{} unlimited`", limit.command)});
    }
    examine_huge_pages(sources, findings);
}

/// Adds a finding for each fact that cannot be read.
void examine_what_can_be_read(const SettingsSources& sources, std::vector<Finding>& findings) {
    for (const std::filesystem::path& path :
         {sources.proc / "self", sources.proc / "sys/kernel", sources.sys / "kernel/mm", sources.sys / "module"}) {
        if (!is_there(path)) {
            findings.push_back({Verdict::kAdvice, "settings in " + path.native(), kUnknown,
                                "it cannot be read here, so nothing of it is said below"});
        }
    }
}

void examine_limits(std::vector<Finding>& findings) {
    rlimit limit{};
    ::getrlimit(RLIMIT_MEMLOCK, &limit);
    Finding finding{Verdict::kGood, "locked memory", "", ""};
    finding.value = limit.rlim_cur == RLIM_INFINITY ? "no limit" : "at most " + format_bytes(limit.rlim_cur);
    try {
        prefault::check_may_pin(prefault::Pin::kMlock, UINT64_MAX);
        if (limit.rlim_cur != RLIM_INFINITY) {
            finding.value += ", which does not bind this process (it was tried)";
        }
    } catch (const Error&) {
        finding.verdict = Verdict::kAdvice;
        finding.advice = "--pin=mlock cannot lock a larger guest: raise it with `ulimit -l` or LimitMEMLOCK=";
    }
    findings.push_back(finding);
}

void examine_open_files(std::vector<Finding>& findings) {
    rlimit limit{};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    findings.push_back({Verdict::kGood, "open files",
                        limit.rlim_max == RLIM_INFINITY ? "no limit" : vmm::format("at most {}", limit.rlim_max), ""});
}

void examine_processors(const SettingsSources& sources, std::vector<Finding>& findings) {
    const std::filesystem::path node = sources.sys / "devices/system/node";
    const std::size_t nodes =
        prefault::NumaTopology::read(node.native(), (sources.proc / "self/status").native()).nodes.size();
    const std::string where = is_there(sources.sys / "devices/system")
                                  ? vmm::format("{} NUMA node{}", nodes, nodes > 1 ? "s" : "")
                                  : "an unknown number of NUMA nodes";
    findings.push_back(
        {Verdict::kGood, "processors", vmm::format("{} usable, on {}", prefault::usable_cpu_list().size(), where), ""});
}

/// Finds out by an attempt.
void examine_disk_io(std::vector<Finding>& findings) {
    const std::string why_not = devices::why_no_uring();
    findings.push_back(why_not.empty() ? Finding{Verdict::kGood, "disk I/O", "by io_uring", ""}
                                       : Finding{Verdict::kAdvice, "disk I/O", "by threads, which is slower", why_not});
}

/// Finds out by an attempt.
void examine_lazy_restore(std::vector<Finding>& findings) {
    const std::string problem = UserFaultFd::problem();
    findings.push_back(problem.empty()
                           ? Finding{Verdict::kGood, "snapshots", "memory can come while the guest runs", ""}
                           : Finding{Verdict::kAdvice, "snapshots", "without --restore-mode=lazy", problem});
}

/// Finds out by an attempt, on a thread that ends afterwards.
void examine_sandbox(std::vector<Finding>& findings) {
    if (kStandardSandbox == SandboxMode::kOff) {
        findings.push_back({Verdict::kGood, "sandbox", "off, because this program was built with a sanitizer", ""});
        return;
    }
    std::string problem;
    try {
        const Sandbox sandbox(SandboxMode::kOn);
        start_thread("a trial of the sandbox", [&] {
            try {
                sandbox.confine(ThreadKind::kVcpu, "trial");
            } catch (const Error& error) {
                problem = error.what();
            }
        }).join();
    } catch (const Error& error) {
        problem = error.what();
    }
    const int landlock = landlock_version();
    findings.push_back(problem.empty()
                           ? Finding{Verdict::kGood, "sandbox",
                                     landlock != 0 ? vmm::format("by seccomp and Landlock {}", landlock)
                                                   : "by seccomp; this kernel has no Landlock",
                                     ""}
                           : Finding{Verdict::kAdvice, "sandbox", "guests run with --sandbox=off alone", problem});
}

} // namespace

std::vector<Finding> examine_host() {
    return examine_host(SettingsSources());
}

std::vector<Finding> examine_host(const SettingsSources& sources) {
    std::vector<Finding> findings;
    try {
        examine_kvm(findings);
    } catch (const Error& error) {
        findings.push_back({Verdict::kFatal, "KVM", "unusable", error.what()});
    }
    examine_second_level(findings);
    examine_memory(sources, findings);
    examine_limits(findings);
    examine_open_files(findings);
    examine_processors(sources, findings);
    examine_disk_io(findings);
    examine_lazy_restore(findings);
    examine_sandbox(findings);
    examine_what_can_be_read(sources, findings);
    const std::vector<Finding> settings = examine_settings(sources);
    findings.insert(findings.end(), settings.begin(), settings.end());
    return findings;
}

bool can_run_guests(const std::vector<Finding>& findings) {
    return std::ranges::none_of(findings, [](const Finding& finding) { return finding.verdict == Verdict::kFatal; });
}

std::string to_text(const std::vector<Finding>& findings) {
    std::string text;
    for (const Finding& finding : findings) {
        static constexpr std::array kMarks{"ok    ", "advice", "FATAL "};
        text += vmm::format("{}  {}: {}\n", kMarks.at(static_cast<std::size_t>(finding.verdict)), finding.what,
                            finding.value);
        if (!finding.advice.empty()) {
            text += vmm::format("        {}\n", finding.advice);
        }
    }
    text += can_run_guests(findings) ? "A guest can run here.\n" : "A guest cannot run here.\n";
    return text;
}

} // namespace vmm
