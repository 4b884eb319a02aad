#include "vmm/bench/json_parts.hpp"

namespace vmm::bench {

using Json = nlohmann::ordered_json;

Json to_json_parts(const HostFacts& host) {
    return {{"node", host.node},
            {"kernel", host.kernel},
            {"cpu", host.cpu},
            {"microcode", host.microcode},
            {"cpus", host.cpus},
            {"memory_bytes", host.memory_bytes},
            {"second_level", host.second_level},
            {"tdp_mmu", or_null(host.tdp_mmu)},
            {"kvm_pre_fault_memory", host.prefault_ioctl},
            {"nested", host.nested}};
}

Json to_json_parts(const Harness& harness) {
    return {{"seconds", harness.seconds},
            {"run_seconds", harness.run_seconds},
            {"own_cpu_seconds", harness.own_cpu_seconds},
            {"share", harness.share()},
            {"empty_run_seconds", or_null(harness.empty_run_seconds)}};
}

Json to_json_parts(const Statistics& statistics) {
    return {{"min", statistics.least},
            {"median", statistics.median},
            {"max", statistics.most},
            {"low", statistics.confidence.low},
            {"high", statistics.confidence.high}};
}

} // namespace vmm::bench
