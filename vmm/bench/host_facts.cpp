#include "vmm/bench/host_facts.hpp"

#include <sys/utsname.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>

#include "kvm/host/format.hpp"
#include "kvm/system.hpp"
#include "prefault/host/cpu_list.hpp"
#include "prefault/x86/second_level_host.hpp"
#include "vmm/host/memory_facts.hpp"

namespace vmm::bench {

namespace {

std::string cpu_model() {
    std::ifstream cpuinfo("/proc/cpuinfo");
    for (std::string line; std::getline(cpuinfo, line);) {
        if (line.starts_with("model name")) {
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
    facts.cpu = cpu_model();
    facts.cpus = static_cast<unsigned>(prefault::usable_cpu_list().size());
    facts.memory_bytes = read_host_memory().total_bytes.value_or(0);
    const prefault::SecondLevelHost second_level = prefault::detect_second_level();
    facts.second_level = prefault::to_string(second_level.kind);
    facts.tdp_mmu = second_level.tdp_mmu;
    facts.prefault_ioctl = kvm::System().extension(KVM_CAP_PRE_FAULT_MEMORY) != 0;
    facts.nested = second_level.nested;
    return facts;
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
