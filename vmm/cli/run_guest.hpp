// `vmm run`, from its options to its exit status.
#pragma once

#include <chrono>

#include "vmm/cli/commands.hpp"

namespace vmm {

/// The message if there is no memory left even for the program itself.
inline constexpr const char* kNoMemory = "cannot allocate memory for this program itself (free some, or raise `ulimit "
                                         "-v` or the memory cgroup's memory.max)";

/// Runs a guest to its end, and prints what happened. `started` is the time at which the program was started. Returns
/// the exit status of the program. Throws Error if the configuration is impossible; then nothing has been opened.
/// Threads: the main one.
[[nodiscard]] int run_guest(RunCommand command, std::chrono::steady_clock::time_point started);

} // namespace vmm
