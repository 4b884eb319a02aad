// What a machine takes of the host: memory, descriptors, threads, mappings.
#pragma once

#include <cstdint>

#include "prefault/host/numa.hpp"
#include "vmm/config.hpp"
#include "vmm/host/host_facts.hpp"
#include "vmm/host/memory_facts.hpp"
#include "vmm/host/process_limits.hpp"

namespace vmm {

/// How many bytes of tables `bytes` of guest memory take when all of them are resident: the host's page tables, the
/// second level, and what KVM keeps for each page. If `may_be_shadow`, KVM may shadow the guest's own tables, which
/// takes more. It is the worst case: pages of 4 KiB are mapped wherever the page size allows them.
[[nodiscard]] std::uint64_t table_bytes(std::uint64_t bytes, PageSize page_size, bool may_be_shadow) noexcept;

/// What the machine of `config` takes of the memory of a host of these nodes.
[[nodiscard]] MemoryNeed memory_need(const Config& config, const prefault::NumaTopology& topology, bool may_be_shadow);

/// What `bytes` more of guest memory take, populated at once.
[[nodiscard]] MemoryNeed more_memory_need(const Config& config, std::uint64_t bytes, bool may_be_shadow);

/// How many descriptors, threads and mappings the machine of `config` takes on such a host; more than it will, by a
/// little.
[[nodiscard]] ProcessNeed process_need(const Config& config, const prefault::NumaTopology& topology);

/// Throws Error if a host of these facts lacks the memory, the descriptors, the threads or the mappings that `config`
/// takes.
void check_host_room(const Config& config, const HostFacts& facts);

/// Throws Error if `bytes` more of memory cannot be had for the guest of `config`, which is there already.
void check_room_for_more(const Config& config, std::uint64_t bytes);

/// What the guest of `config` may run into later, a sentence each. Throws Error as prefault::NumaTopology::read().
[[nodiscard]] std::vector<std::string> host_room_warnings(const Config& config);

} // namespace vmm
