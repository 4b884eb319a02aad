// Worker threads that start together.
#pragma once

#include <functional>
#include <stop_token>
#include <string_view>
#include <vector>

#include "prefault/host/cpu_list.hpp"

namespace vmm::prefault {

/// The threads that do one job together.
struct Crew {
    unsigned workers = 1;       ///< at least 1
    std::string_view name;      ///< a thread's name is this and its index; the kernel keeps 15 characters
    std::vector<CpuList> cpus;  ///< the CPUs of each worker; empty, or no entry: those of the caller
    bool low_priority = false;  ///< as LowPriority: behind all others, but never starved, until a stop is requested
    std::function<void()> tick; ///< called on the calling thread some ten times a second; may be empty
};

/// The work of worker `index`. It must return when it is done or a stop is requested.
using CrewWork = std::function<void(unsigned index, const std::stop_token& stop)>;

/// Runs `work(0)` to `work(workers - 1)`, each on its own thread with every signal blocked, and returns when all are
/// done. All threads exist before the first one begins, so that none waits on the memory map's lock for another's
/// stack. The stop token of the workers is stopped by `stop`, and by the first failure, so that none does useless work.
/// Throws what the first failing worker or `tick` threw. Throws Error if a thread cannot be made or placed; then no
/// work has begun.
void run_in_parallel(const Crew& crew, const std::stop_token& stop, const CrewWork& work);

} // namespace vmm::prefault
