// Writes to a descriptor that others share, without ever waiting.
#pragma once

#include <cstddef>
#include <span>

#include "kvm/host/unique_fd.hpp"

namespace vmm {

/// Writes to a descriptor that others share, without changing its flags: O_NONBLOCK belongs to the open file, so
/// setting it on our standard output would set it for the shell, too. A terminal or pipe is opened a second time; a
/// socket has a flag for each call; a file never makes the caller wait. Threads: one.
class NonblockingOutput {
  public:
    /// `fd` is a loan. It never throws: if the second opening is not allowed, it makes short writes after poll().
    explicit NonblockingOutput(int fd) noexcept;

    enum class Status {
        kWritten,    ///< `written` bytes were taken, at least one
        kWouldBlock, ///< nothing was taken now: wait until fd() is writable
        kClosed,     ///< refused for the reason `error_number`: nobody will ever read this, or the disk is full
    };
    struct Result {
        Status status;
        std::size_t written;
        int error_number = 0;
    };
    [[nodiscard]] Result write(std::span<const std::byte> bytes) const noexcept;

    /// True if write() may wait nevertheless. It may wait for the storage of a file, and for another writer of a
    /// terminal that this process may not open itself.
    [[nodiscard]] bool may_wait() const noexcept { return way_ == Way::kWrite ? !reopened_ : way_ == Way::kPollFirst; }

    /// The descriptor to wait on. It is a separate descriptor, so that it can be watched beside the original one.
    [[nodiscard]] int fd() const noexcept { return reopened_ ? reopened_.get() : shared_fd_; }

  private:
    enum class Way { kWrite, kSend, kPollFirst };
    int shared_fd_;
    UniqueFd reopened_;
    Way way_ = Way::kWrite;
};

} // namespace vmm
