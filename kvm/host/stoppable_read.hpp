// Reading from what may keep its reader waiting: a pipe, a terminal, a file of a slow host.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "kvm/host/error.hpp"
#include "kvm/host/unique_fd.hpp"

namespace vmm {

/// A request to stop ended what was under way.
class StoppedError : public Error {
  public:
    using Error::Error;
};

/// Opens `path` for reading and never waits for a writer: a fifo that nobody has opened for writing is open at once,
/// and read_some() waits. Who holds a lease on the file (fcntl(2)) is waited for, no longer than until `stop_fd` is
/// readable. Throws Error "cannot <tried>: ...", and StoppedError.
[[nodiscard]] UniqueFd open_for_reading(const std::string& path, int stop_fd, const std::string& tried);

/// Throws StoppedError if `stop_fd` is readable within `wait_ms`. A negative one never is.
void check_not_stopped(int stop_fd, const std::string& tried, int wait_ms = 0);

/// Waits until `fd` has something to read, and reads up to out.size() bytes of it; 0 only at its end. Throws
/// StoppedError as soon as `stop_fd` is readable; a negative one never is. Throws Error if the host cannot read.
[[nodiscard]] std::size_t read_some(int fd, std::span<std::byte> out, int stop_fd, const std::string& tried);

} // namespace vmm
