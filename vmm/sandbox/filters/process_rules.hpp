// The system calls that a process that runs a machine may make, in any of its threads.
#pragma once

#include "vmm/sandbox/compiled_filters.hpp"
#include "vmm/sandbox/filters/filter_builder.hpp"

namespace vmm {

/// Adds to `filter` the rules for the threads of such a process. Calls without a rule must fail, so `filter` must be
/// made with FilterBuilder::Otherwise::kEperm. Calls that would take over something else are refused. Threads that a
/// guest can reach have a second filter (allow_thread()). compiled_filters::kAnyProcess stands for the process itself.
/// Throws Error.
void allow_process(FilterBuilder& filter, const ProcessNeeds& needs);

} // namespace vmm
