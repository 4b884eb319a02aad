// The 16550 serial port COM1.
#pragma once

#include <optional>

#include "vmm/guest/text.hpp"

namespace vmm::guest::serial {

/// Sets 115200 baud, 8N1, no interrupts, and the FIFO if there is one.
void start() noexcept;

/// Prints a line and its end. If the port does not become ready, it stops waiting and writes anyway. Only CPU 0 calls
/// it.
void print(const Line& line) noexcept;

/// Returns a byte that has come, if there is one. Only CPU 0 calls it.
[[nodiscard]] std::optional<char> read() noexcept;

} // namespace vmm::guest::serial
