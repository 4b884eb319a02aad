// Commands to the guest, each of one byte. Between them the guest measures how late its heartbeat is.
#pragma once

#include <cstdint>

namespace vmm::guest {

/// Runs a heartbeat by the time-stamp counter, which runs at `khz`, and obeys the bytes that come over the serial port
/// (README.md). It returns when one of them tells it to end. Only CPU 0 calls it, after plan_workload().
void obey_commands(std::uint64_t khz) noexcept;

} // namespace vmm::guest
