// Which system calls a kind of thread may make.
#pragma once

#include "vmm/sandbox/filters/filter_builder.hpp"
#include "vmm/sandbox/thread_kind.hpp"

namespace vmm {

/// Tells `filter`, which refuses all calls, what a thread of this kind needs. Throws Error.
void allow_thread(FilterBuilder& filter, ThreadKind kind);

} // namespace vmm
