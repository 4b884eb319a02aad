#include "vmm/control/metrics.hpp"

#include <map>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "kvm/host/format.hpp"

namespace vmm::control {

using Json = nlohmann::ordered_json;

namespace {

std::string head(std::string_view name, std::string_view kind, std::string_view help) {
    return vmm::format("# HELP {0} {2}\n# TYPE {0} {1}\n", name, kind, help);
}

} // namespace

Json to_json(const Statistics& statistics) {
    Json vcpus = Json::array();
    for (const VcpuStatistics& vcpu : statistics.vcpus) {
        vcpus.push_back({{"exits", vcpu.exits}, {"second_level_faults", vcpu.second_level_faults}});
    }
    Json devices = Json::array();
    for (const DeviceStatistics& device : statistics.devices) {
        Json counters = Json::object();
        for (const DeviceCounter& counter : device.counters) {
            counters[counter.name] = counter.value;
        }
        devices.push_back({{"name", device.name}, {"counters", std::move(counters)}});
    }
    return {{"state", to_string(statistics.state)},
            {"vcpus", std::move(vcpus)},
            {"memory",
             {{"bytes", statistics.memory.bytes},
              {"requested_bytes", statistics.memory.requested_bytes},
              {"max_bytes", statistics.memory.max_bytes}}},
            {"mapped",
             {{"pages_4k", statistics.mapped.pages_4k},
              {"pages_2m", statistics.mapped.pages_2m},
              {"pages_1g", statistics.mapped.pages_1g},
              {"bytes", statistics.mapped.bytes()}}},
            {"devices", std::move(devices)}};
}

std::string to_prometheus(const Statistics& statistics, std::uint64_t memory_bytes) {
    std::string text = head("vmm_state", "gauge", "What the machine is doing: 1 for its state");
    for (const RunState state : kRunStates) {
        text += vmm::format("vmm_state{{state=\"{}\"}} {}\n", to_string(state), state == statistics.state ? 1 : 0);
    }
    text += head("vmm_memory_bytes", "gauge", "Memory that the machine was made with");
    text += vmm::format("vmm_memory_bytes {}\n", memory_bytes);
    text += head("vmm_memory_present_bytes", "gauge", "Memory that the guest began with, and what it has plugged");
    text += vmm::format("vmm_memory_present_bytes {}\n", statistics.memory.bytes);
    text += head("vmm_memory_requested_bytes", "gauge", "Memory that the guest is asked to have");
    text += vmm::format("vmm_memory_requested_bytes {}\n", statistics.memory.requested_bytes);
    text += head("vmm_memory_max_bytes", "gauge", "Memory that the guest can be given");
    text += vmm::format("vmm_memory_max_bytes {}\n", statistics.memory.max_bytes);
    text += head("vmm_mapped_pages", "gauge", "Mappings of guest memory in the second level, by their size");
    text += vmm::format("vmm_mapped_pages{{size=\"4k\"}} {}\nvmm_mapped_pages{{size=\"2m\"}} {}\n"
                        "vmm_mapped_pages{{size=\"1g\"}} {}\n",
                        statistics.mapped.pages_4k, statistics.mapped.pages_2m, statistics.mapped.pages_1g);
    text += head("vmm_vcpu_exits_total", "counter", "How often KVM left the guest");
    for (std::size_t vcpu = 0; vcpu < statistics.vcpus.size(); ++vcpu) {
        text += vmm::format("vmm_vcpu_exits_total{{vcpu=\"{}\"}} {}\n", vcpu, statistics.vcpus[vcpu].exits);
    }
    text += head("vmm_vcpu_second_level_faults_total", "counter", "Mappings that KVM made on the vCPU's behalf");
    for (std::size_t vcpu = 0; vcpu < statistics.vcpus.size(); ++vcpu) {
        text += vmm::format("vmm_vcpu_second_level_faults_total{{vcpu=\"{}\"}} {}\n", vcpu,
                            statistics.vcpus[vcpu].second_level_faults);
    }
    std::map<std::string, std::vector<std::pair<std::string, std::uint64_t>>> counters;
    for (const DeviceStatistics& device : statistics.devices) {
        for (const DeviceCounter& counter : device.counters) {
            counters[counter.name].emplace_back(device.name, counter.value);
        }
    }
    for (const auto& [name, values] : counters) {
        const std::string metric = "vmm_device_" + name + "_total";
        text += head(metric, "counter", "A counter of each device that has it");
        for (const auto& [device, value] : values) {
            text += vmm::format("{}{{device=\"{}\"}} {}\n", metric, device, value);
        }
    }
    return text;
}

} // namespace vmm::control
