#include "vmm/config.hpp"

#include <fstream>
#include <string>
#include <string_view>

#include "kvm/error.hpp"
#include "prefault/huge_page_pool.hpp"
#include "vmm/host_memory.hpp"
#include "vmm/memory_map.hpp"

namespace vmm {

namespace {

void validate_memory_size(const Config& config) {
    const std::string tried = "cannot give the guest " + format_bytes(config.memory_bytes) + " of memory";
    if (config.memory_bytes < Config::kMinMemoryBytes) {
        throw Error(tried + ": it needs at least " + format_bytes(Config::kMinMemoryBytes) +
                    (config.memory_bytes != 0 ? " (a number without a unit is bytes: write e.g. 512M)" : ""));
    }
    const std::uint64_t page_bytes = certain_page_bytes(config.page_size);
    if (!is_aligned(config.memory_bytes, page_bytes)) {
        throw Error(tried + ": it must be a multiple of the page size, " + format_bytes(page_bytes));
    }
    if (config.memory_bytes > memory_map::kMaxMemoryBytes) {
        throw Error(tried + ": the most this program can give is " + format_bytes(memory_map::kMaxMemoryBytes));
    }
}

/// Refuses what the kernel would only find out by killing somebody.
void validate_against_host_memory(const Config& config) {
    if (config.page_size == PageSize::k2M || config.page_size == PageSize::k1G) {
        return; // The pool is memory that is set aside already.
    }
    const HostMemory host = read_host_memory();
    const std::string tried = "cannot give the guest " + format_bytes(config.memory_bytes) + " of memory";
    if (config.memory_bytes > host.total_bytes) {
        throw Error(tried + ": this host has " + format_bytes(host.total_bytes));
    }
    if (const auto limit = read_memory_cgroup_limit(); limit && config.memory_bytes > *limit) {
        throw Error(tried + ": the control group of this process may use " + format_bytes(*limit) +
                    " (raise its memory.max)");
    }
    if (config.prefault.scope != prefault::Scope::kNone && config.memory_bytes > host.available_bytes) {
        throw Error(tried + " ahead of time: this host has " + format_bytes(host.available_bytes) + " available of " +
                    format_bytes(host.total_bytes) + " (free some, or take --prefault=none)");
    }
}

} // namespace

void validate(const Config& config) {
    validate_memory_size(config);
    if (config.vcpus < 1 || config.vcpus > Config::kMaxVcpus) {
        throw Error("cannot give the guest " + std::to_string(config.vcpus) + " vCPUs: 1 to " +
                    std::to_string(Config::kMaxVcpus) + " are possible");
    }
    if (config.prefault.workers < 1 || config.prefault.workers > Config::kMaxPrefaultWorkers) {
        throw Error("cannot use " + std::to_string(config.prefault.workers) + " prefault workers: 1 to " +
                    std::to_string(Config::kMaxPrefaultWorkers) + " are possible");
    }
    validate_against_host_memory(config);
    prefault::check_huge_page_pool(config.page_size, config.memory_bytes);
    prefault::check_may_pin(config.prefault.pin, config.memory_bytes);
}

} // namespace vmm
