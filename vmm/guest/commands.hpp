// A guest that is asked what to do, byte by byte, and counts meanwhile how late it is.
#pragma once

#include <cstdint>

namespace vmm::guest {

/// Has a heartbeat by the time-stamp counter, which runs at `khz`, and does what the bytes say that come by the serial
/// port (README.md). Returns when one of them says that this is the end. For CPU 0, after plan_workload().
void obey_commands(std::uint64_t khz) noexcept;

} // namespace vmm::guest
