// Which system calls a process that runs a machine may make, in any of its threads.
#pragma once

#include "vmm/sandbox/compiled_filters.hpp"
#include "vmm/sandbox/filters/filter_builder.hpp"

namespace vmm {

/// Tells `filter`, with which other calls fail (FilterBuilder::Otherwise::kEperm), what the threads of such a process
/// may do; those that a guest can reach have a filter of their own beside it (allow_thread()). What would take over
/// something else is refused. compiled_filters::kAnyProcess stands for the process itself. Throws Error.
void allow_process(FilterBuilder& filter, const ProcessNeeds& needs);

} // namespace vmm
