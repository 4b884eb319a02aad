// Pre-population as a whole: host side, pin, second level, proof.
#pragma once

#include <atomic>
#include <map>
#include <stop_token>
#include <vector>

#include "kvm/host/guest_memory.hpp"
#include "prefault/host/cpu_list.hpp"
#include "prefault/host/numa.hpp"
#include "prefault/host/pin.hpp"
#include "prefault/options.hpp"
#include "prefault/second_level_filler.hpp"

namespace vmm::prefault {

/// What a run works on.
struct Target {
    const GuestMemory& memory;
    /// Where each part of it lies, in ascending order; all of it.
    const std::vector<PlacedRange>& placement;
    /// The CPUs of each node that `placement` names.
    const std::map<unsigned, CpuList>& node_cpus;
    PinnedMemory& pins;
    /// Needed for Scope::kAll.
    SecondLevelFiller* filler = nullptr;
    MethodChoice method;
    /// Whether the guest runs; it may begin to meanwhile. Null: it does not.
    const std::atomic<bool>* guest_runs = nullptr;
};

/// Runs pre-population over what `options` ask for: host side, pin, second level, verification. May be used again at
/// any time: what is there already is found there, and content never changes. If `stop` is requested the report says
/// what was done, with `complete` false. Throws Error, and what the progress sink throws.
Report run(const Target& target, const Options& options, const std::stop_token& stop = {});

} // namespace vmm::prefault
