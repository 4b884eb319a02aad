// Reads from a file that may keep its reader waiting: a pipe, a terminal, a file of a slow host.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "kvm/host/error.hpp"
#include "kvm/host/unique_fd.hpp"

namespace vmm {

/// A request to stop ended the operation.
class StoppedError : public Error {
  public:
    using Error::Error;
};

/// Opens `path` for reading and never waits for a writer: a fifo that nobody has opened for writing opens at once, and
/// read_some() waits instead. If a process holds a lease on the file (fcntl(2)), the call waits for it, but only until
/// `stop_fd` is readable. Throws Error "cannot <tried>: ...", and StoppedError.
[[nodiscard]] UniqueFd open_for_reading(const std::string& path, int stop_fd, const std::string& tried);

/// Throws StoppedError if `stop_fd` becomes readable within `wait_ms`. A negative `stop_fd` never does.
void check_not_stopped(int stop_fd, const std::string& tried, int wait_ms = 0);

/// Waits until `fd` has data, and reads up to out.size() bytes; returns 0 only at the end of the file. Throws
/// StoppedError as soon as `stop_fd` is readable; a negative `stop_fd` never is. Throws Error if the host cannot read.
[[nodiscard]] std::size_t read_some(int fd, std::span<std::byte> out, int stop_fd, const std::string& tried);

} // namespace vmm
