#include "vmm/bench/host_facts.hpp"

#include <sys/utsname.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string_view>

#include "kvm/host/format.hpp"
#include "kvm/system.hpp"
#include "prefault/host/cpu_list.hpp"
#include "prefault/x86/second_level_host.hpp"
#include "vmm/host/memory_facts.hpp"

namespace vmm::bench {

namespace {

/// The value of the first line of that name in /proc/cpuinfo; empty if there is none.
std::string cpuinfo_value(std::string_view name) {
    std::ifstream cpuinfo("/proc/cpuinfo");
    for (std::string line; std::getline(cpuinfo, line);) {
        if (line.starts_with(name)) {
            const std::size_t colon = line.find(':');
            return colon == std::string::npos ? "" : line.substr(std::min(colon + 2, line.size()));
        }
    }
    return "";
}

} // namespace

HostFacts read_host_facts() {
    HostFacts facts;
    utsname names{};
    ::uname(&names);
    facts.node = names.nodename;
    facts.kernel = names.release;
    facts.cpu = cpuinfo_value("model name");
    facts.microcode = cpuinfo_value("microcode");
    facts.cpus = static_cast<unsigned>(prefault::usable_cpu_list().size());
    facts.memory_bytes = read_host_memory().total_bytes.value_or(0);
    const prefault::SecondLevelHost second_level = prefault::detect_second_level();
    facts.second_level = prefault::to_string(second_level.kind);
    facts.tdp_mmu = second_level.tdp_mmu;
    facts.prefault_ioctl = kvm::System().extension(KVM_CAP_PRE_FAULT_MEMORY) != 0;
    facts.nested = second_level.nested;
    return facts;
}

bool same_kind(const HostFacts& one, const HostFacts& other) noexcept {
    return one.cpu == other.cpu && one.microcode == other.microcode && one.cpus == other.cpus &&
           one.kernel == other.kernel && one.second_level == other.second_level && one.tdp_mmu == other.tdp_mmu &&
           one.prefault_ioctl == other.prefault_ioctl && one.nested == other.nested;
}

std::string kind_text(const HostFacts& host) {
    return vmm::format("{}{}, {} CPU{}, Linux {}, {}{}{}{}", host.cpu.empty() ? "unknown processor" : host.cpu,
                       host.microcode.empty() ? "" : " (microcode " + host.microcode + ")", host.cpus,
                       host.cpus == 1 ? "" : "s", host.kernel, host.second_level,
                       host.tdp_mmu.value_or(false) ? " with TDP MMU" : "",
                       host.prefault_ioctl ? ", KVM_PRE_FAULT_MEMORY" : "", host.nested ? ", itself a guest" : "");
}

std::optional<double> load_average() {
    double load = 0;
    return ::getloadavg(&load, 1) == 1 ? std::optional(load) : std::nullopt;
}

std::string load_line(std::optional<double> before, std::optional<double> after, unsigned cpus) {
    return before && after ? vmm::format("the host's load average was {:.1f} before and {:.1f} after, with {} CPUs\n",
                                         *before, *after, cpus)
                           : "";
}

} // namespace vmm::bench
