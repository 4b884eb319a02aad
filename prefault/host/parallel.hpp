// Worker threads that start together.
#pragma once

#include <functional>
#include <optional>
#include <stop_token>
#include <string_view>
#include <vector>

#include "prefault/host/cpu_list.hpp"

namespace vmm::prefault {

/// Makes the calling thread, and those it starts from then on, nice 19, until `stop` is requested: a thread that has to
/// end soon must not wait behind everybody. Only who may raise a priority (CAP_SYS_NICE, RLIMIT_NICE) gets it back
/// then, and as that of the process's first thread.
class LowPriority {
  public:
    explicit LowPriority(const std::stop_token& stop);
    LowPriority(const LowPriority&) = delete;
    LowPriority& operator=(const LowPriority&) = delete;

  private:
    struct Hurry {
        unsigned thread;
        void operator()() const noexcept;
    };
    std::optional<std::stop_callback<Hurry>> hurry_;
};

/// The threads that do one job together.
struct Crew {
    unsigned workers = 1;       ///< at least 1
    std::string_view name;      ///< a thread's name is this and its index; the kernel keeps 15 characters
    std::vector<CpuList> cpus;  ///< by worker, where it runs; empty, or no entry: where the caller may
    bool low_priority = false;  ///< as LowPriority: behind everybody, yet never starved, until a stop is requested
    std::function<void()> tick; ///< called on the calling thread some ten times a second; may be empty
};

/// What worker `index` does, until it is done or a stop is requested.
using CrewWork = std::function<void(unsigned index, const std::stop_token& stop)>;

/// Runs `work(0)` to `work(workers - 1)`, each on a thread of its own. All threads exist before the first begins, so
/// none waits on the memory map's lock for another's stack. Every signal is blocked in them. Returns when all are done.
/// The stop token that workers get is stopped by `stop`, and by the first failure, so that none works on for nothing.
/// Throws what the first failing worker threw, or `tick`; and Error where a thread cannot be made or placed, in which
/// case no work has begun.
void run_in_parallel(const Crew& crew, const std::stop_token& stop, const CrewWork& work);

} // namespace vmm::prefault
