#include "vmm/cli/doctor.hpp"

#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <optional>

#include "devices/disk_io.hpp"
#include "kvm/error.hpp"
#include "kvm/format.hpp"
#include "kvm/system.hpp"
#include "kvm/vm.hpp"
#include "prefault/cpu_list.hpp"
#include "prefault/huge_page_pool.hpp"
#include "prefault/numa.hpp"
#include "prefault/pin.hpp"
#include "prefault/second_level.hpp"
#include "vmm/cli/host_settings.hpp"
#include "vmm/host_memory.hpp"
#include "vmm/host_requirements.hpp"
#include "vmm/x86_cpuid.hpp"

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

void examine_second_level(std::vector<Finding>& findings) {
    const prefault::SecondLevelHost host = prefault::detect_second_level();
    Finding finding{Verdict::kGood, "second level",
                    vmm::format("{}, TDP MMU {}", to_string(host.kind), host.tdp_mmu ? "on" : "off"), ""};
    if (host.kind == prefault::SecondLevelKind::kShadow) {
        finding.verdict = Verdict::kAdvice;
        finding.advice =
            "shadow paging: only a guest that uses the prefault's own page tables (the built-in guest does) "
            "runs without faults; with kvm_amd npt=1 or kvm_intel ept=1 every guest does";
    } else if (!host.tdp_mmu) {
        finding.verdict = Verdict::kAdvice;
        finding.advice = "faults are handled one at a time: load kvm with tdp_mmu=1 (Linux 5.15 and later have it on)";
    }
    findings.push_back(finding);
}

void examine_memory(std::vector<Finding>& findings) {
    const HostMemory memory = read_host_memory();
    findings.push_back(
        {Verdict::kGood, "memory",
         vmm::format("{} available of {}", format_bytes(memory.available_bytes), format_bytes(memory.total_bytes)),
         ""});
    for (const std::uint64_t page_bytes : {2 * kMiB, kGiB}) {
        const std::string what = "huge pages of " + format_bytes(page_bytes);
        const auto pool = prefault::read_huge_page_pool(page_bytes);
        if (!pool) {
            findings.push_back({Verdict::kGood, what, "not on this host", ""});
            continue;
        }
        findings.push_back({pool->total != 0 ? Verdict::kGood : Verdict::kAdvice, what,
                            vmm::format("{} available of {}", pool->available(), pool->total),
                            pool->total != 0 ? ""
                                             : vmm::format("for --page-size={}: `echo N | sudo tee "
                                                           "/sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages`",
                                                           page_bytes == kGiB ? "1G" : "2M", page_bytes / kKiB)});
    }
    const auto thp = first_line("/sys/kernel/mm/transparent_hugepage/enabled");
    const bool thp_off = !thp || thp->find("[never]") != std::string::npos;
    findings.push_back({thp_off ? Verdict::kAdvice : Verdict::kGood, "transparent huge pages",
                        thp.value_or("not in this kernel"),
                        thp_off ? "--page-size=thp gives 4 KiB pages: `echo madvise | sudo tee "
                                  "/sys/kernel/mm/transparent_hugepage/enabled`"
                                : ""});
}

void examine_limits(std::vector<Finding>& findings) {
    rlimit limit{};
    ::getrlimit(RLIMIT_MEMLOCK, &limit);
    Finding finding{Verdict::kGood, "locked memory", "", ""};
    finding.value = limit.rlim_cur == RLIM_INFINITY ? "no limit" : "at most " + format_bytes(limit.rlim_cur);
    try {
        prefault::check_may_pin(prefault::Pin::kMlock, UINT64_MAX);
        if (limit.rlim_cur != RLIM_INFINITY) {
            finding.value += ", which does not bind this process (CAP_IPC_LOCK)";
        }
    } catch (const Error&) {
        finding.verdict = Verdict::kAdvice;
        finding.advice = "--pin=mlock cannot lock a larger guest: raise it with `ulimit -l` or LimitMEMLOCK=";
    }
    findings.push_back(finding);
}

void examine_processors(std::vector<Finding>& findings) {
    const std::size_t nodes = prefault::NumaTopology::read().nodes.size();
    findings.push_back(
        {Verdict::kGood, "processors",
         vmm::format("{} usable, on {} NUMA node{}", prefault::usable_cpu_list().size(), nodes, nodes > 1 ? "s" : ""),
         ""});
}

/// By trying.
void examine_disk_io(std::vector<Finding>& findings) {
    const std::string why_not = devices::why_no_uring();
    findings.push_back(why_not.empty() ? Finding{Verdict::kGood, "disk I/O", "by io_uring", ""}
                                       : Finding{Verdict::kAdvice, "disk I/O", "by threads, which is slower", why_not});
}

} // namespace

std::vector<Finding> examine_host() {
    std::vector<Finding> findings;
    try {
        examine_kvm(findings);
    } catch (const Error& error) {
        findings.push_back({Verdict::kFatal, "KVM", "unusable", error.what()});
    }
    examine_second_level(findings);
    examine_memory(findings);
    examine_limits(findings);
    examine_processors(findings);
    examine_disk_io(findings);
    const std::vector<Finding> settings = examine_settings();
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
