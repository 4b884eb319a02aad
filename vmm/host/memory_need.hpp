// The resources of the host that a machine needs: memory, descriptors, threads, mappings.
#pragma once

#include <cstdint>

#include "prefault/host/numa.hpp"
#include "vmm/config.hpp"
#include "vmm/host/host_facts.hpp"
#include "vmm/host/memory_facts.hpp"
#include "vmm/host/process_limits.hpp"

namespace vmm {

/// The bytes of tables for `bytes` of guest memory that is all resident: the host's page tables, the second level, and
/// what KVM keeps for each page. If `may_be_shadow`, KVM may shadow the guest's own tables, which takes more. This is
/// the worst case: memory is mapped in pages of 4 KiB wherever the page size allows them.
[[nodiscard]] std::uint64_t table_bytes(std::uint64_t bytes, PageSize page_size, bool may_be_shadow) noexcept;

/// The host memory that the machine of `config` needs.
[[nodiscard]] MemoryNeed memory_need(const Config& config, const prefault::NumaTopology& topology, bool may_be_shadow);

/// The host memory that `bytes` more of guest memory need, if they are populated at once.
[[nodiscard]] MemoryNeed more_memory_need(const Config& config, std::uint64_t bytes, bool may_be_shadow);

/// The descriptors, threads and mappings that the machine of `config` needs. The numbers are a little too high.
[[nodiscard]] ProcessNeed process_need(const Config& config, const prefault::NumaTopology& topology);

/// Throws Error if a host of these facts lacks the memory, the descriptors, the threads or the mappings that `config`
/// needs.
void check_host_room(const Config& config, const HostFacts& facts);

/// Throws Error if the host has no `bytes` more of memory for the guest of `config`, which exists already.
void check_room_for_more(const Config& config, std::uint64_t bytes);

/// Problems that the guest of `config` may meet later, a sentence each.
[[nodiscard]] std::vector<std::string> host_room_warnings(const Config& config);

} // namespace vmm
