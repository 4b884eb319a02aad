// Worker threads that start together.
#pragma once

#include <functional>
#include <string_view>

namespace vmm::prefault {

/// Runs `work(0)` to `work(workers - 1)`, each on a thread of its own, called "<name><index>" (the kernel keeps 15
/// characters). All threads exist before the first begins, so none waits on the memory map's lock for another's stack.
/// Every signal is blocked in them. Returns when all are done; throws what the first failing worker threw, and Error
/// where a thread cannot be made, in which case no work has begun.
void run_in_parallel(unsigned workers, std::string_view name, const std::function<void(unsigned)>& work);

/// How many CPUs this process may use; at least 1.
unsigned usable_cpus();

} // namespace vmm::prefault
