// The system calls that a kind of thread may make.
#pragma once

#include "vmm/sandbox/filters/filter_builder.hpp"
#include "vmm/sandbox/thread_kind.hpp"

namespace vmm {

/// Adds to `filter`, which refuses all calls, the rules for the calls that a thread of this kind needs. Throws Error.
void allow_thread(FilterBuilder& filter, ThreadKind kind);

} // namespace vmm
