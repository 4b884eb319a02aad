// The 16550 serial port COM1.
#pragma once

#include <optional>

#include "vmm/guest/text.hpp"

namespace vmm::guest::serial {

/// Sets 115200 baud, 8N1, no interrupts, and the FIFO if there is one.
void start() noexcept;

/// Prints a line and its end. For CPU 0 only. Gives up waiting for a port that never becomes ready, and writes anyway.
void print(const Line& line) noexcept;

/// A byte that has come, if there is one. For CPU 0 only.
[[nodiscard]] std::optional<char> read() noexcept;

} // namespace vmm::guest::serial
