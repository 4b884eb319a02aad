// Which system calls a process that runs a machine may make, in any of its threads.
#pragma once

#include <linux/filter.h>

#include <vector>

#include "vmm/sandbox/thread_filter.hpp"

namespace vmm {

/// What a process still has to do when its machine has been made.
struct ProcessNeeds {
    /// Whether guests may go to, or come from, other hosts: connections of TCP.
    bool network = false;
};

/// The filter of all threads, to which those that a guest can reach add their own (make_thread_filter()). What would
/// take over something else is refused as `refusal` says; whatever else is not on its list fails with EPERM. Throws
/// Error.
[[nodiscard]] std::vector<sock_filter> make_process_filter(const ProcessNeeds& needs, Refusal refusal);

} // namespace vmm
