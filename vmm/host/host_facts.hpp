// The resources of this host for machines, and a check whether they are enough for one.
#pragma once

#include "prefault/host/numa.hpp"
#include "vmm/config.hpp"
#include "vmm/host/memory_facts.hpp"
#include "vmm/host/process_limits.hpp"

namespace vmm {

/// Facts about the host and about this process at one moment.
struct HostFacts {
    prefault::NumaTopology nodes;
    MemoryFacts memory;
    ProcessFacts process;
    bool may_be_shadow = true; ///< whether KVM may shadow a guest's page tables

    /// Throws Error as prefault::NumaTopology::read().
    static HostFacts read();
};

/// Throws Error if a host of these facts cannot give what `config` asks for. check_values() must have accepted
/// `config`. It asks the host itself about CPUs, pools of huge pages, the limit on locked memory and the ports of user
/// networks. It creates nothing.
void check_against_host(const Config& config, const HostFacts& facts);

} // namespace vmm
