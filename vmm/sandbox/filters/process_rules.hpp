// Which system calls a process that runs a machine may make, in any of its threads.
#pragma once

#include "vmm/sandbox/compiled_filters.hpp"
#include "vmm/sandbox/filters/filter_builder.hpp"

namespace vmm {

/// Tells `filter` what the threads of such a process may do. Calls that are not named fail: the filter has to be
/// made with FilterBuilder::Otherwise::kEperm. A call that would take over something else is refused. Threads that a
/// guest can reach have a second filter (allow_thread()). compiled_filters::kAnyProcess stands for the process itself.
/// Throws Error.
void allow_process(FilterBuilder& filter, const ProcessNeeds& needs);

} // namespace vmm
