// `vmm run`, from its options to its exit status.
#pragma once

#include <chrono>

#include "vmm/cli/commands.hpp"

namespace vmm {

/// What is said if there is no memory left even for the program itself.
inline constexpr const char* kNoMemory = "cannot allocate memory for this program itself (free some, or raise `ulimit "
                                         "-v` or the memory cgroup's memory.max)";

/// Runs a guest to its end, and says what happened. `started` is when the program was started. Returns the exit status
/// of the program. Throws Error: the configuration cannot be; nothing has been opened then.
/// Threads: the main one.
[[nodiscard]] int run_guest(RunCommand command, std::chrono::steady_clock::time_point started);

} // namespace vmm
