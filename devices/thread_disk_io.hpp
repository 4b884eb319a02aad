// A disk's I/O by threads that make system calls, for a host without io_uring.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "devices/disk_io.hpp"
#include "kvm/host/unique_fd.hpp"

namespace vmm::devices {

/// Uses at most kMostThreads threads, which are started as they are needed. Each makes one system call at a time
/// (preadv2(), pwritev2(), fdatasync(), fallocate()). Data in the page cache is read at once, on the caller's thread.
///
/// Threads: one at a time.
class ThreadDiskIo final : public DiskIo {
  public:
    static constexpr unsigned kMostThreads = 8;

    /// Starts the first thread. `cached` must be true if files.fd has no O_DIRECT.
    /// Throws Error if the host has no descriptor or no thread for it.
    ThreadDiskIo(const DiskFiles& files, unsigned depth, bool cached);
    /// Waits for its threads to end. They are idle if nothing is in flight.
    ~ThreadDiskIo() override;

    [[nodiscard]] DiskIoKind kind() const noexcept override { return DiskIoKind::kThreads; }
    [[nodiscard]] bool register_buffers(std::span<const std::span<std::byte>> /*buffers*/) override { return false; }
    [[nodiscard]] int fd() const noexcept override;
    [[nodiscard]] bool has_room() const noexcept override { return in_flight_ < depth_; }
    void read(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces) override;
    void write(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces) override;
    void flush(std::uint64_t token) override;
    void allocate(std::uint64_t token, int mode, std::uint64_t offset, std::uint64_t bytes) override;
    [[nodiscard]] bool submit() override;
    [[nodiscard]] std::size_t reap(std::span<Completion> completions) override;
    void abandon() override;

    /// The number of its threads.
    [[nodiscard]] unsigned threads() const noexcept;

  private:
    struct Operation;
    class Crew;

    void queue(const Operation& operation);
    [[nodiscard]] bool read_at_once(const Operation& operation, Completion& completion);
    [[nodiscard]] int fd_of(std::uint64_t offset) const noexcept;

    DiskFiles files_;
    unsigned depth_;
    unsigned in_flight_ = 0;
    bool cached_; ///< true if the page cache may be asked
    std::vector<Operation> queued_;
    std::unique_ptr<Crew> crew_;
};

} // namespace vmm::devices
