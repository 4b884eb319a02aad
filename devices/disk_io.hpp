// Asynchronous I/O on one file (io_uring).
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace vmm::devices {

/// A ring for one file. Operations are queued, go to the kernel together with submit(), and come back in any order,
/// each with the token it was queued with.
///
/// The ring is restricted (IORING_REGISTER_RESTRICTIONS): it can do nothing but the operations below, on that file.
///
/// Threads: one, the one that made it.
class DiskIo {
  public:
    /// For at most `depth` operations at once, on `fd`, a loan. `buffers` are memory that stays where it is, each at
    /// most kMostBufferBytes: I/O on one piece of it spares the kernel looking its pages up. They are pinned as long as
    /// this lives; where the kernel refuses that they are done without, see has_buffers(). Throws Error: this process
    /// may not use io_uring.
    DiskIo(int fd, unsigned depth, std::span<const std::span<std::byte>> buffers);
    ~DiskIo();
    DiskIo(const DiskIo&) = delete;
    DiskIo& operator=(const DiskIo&) = delete;

    static constexpr std::size_t kMostBufferBytes = std::size_t{1} << 30;
    static constexpr unsigned kMostBuffers = 16384;
    /// The most pieces of memory in one operation (UIO_MAXIOV).
    static constexpr std::size_t kMostPieces = 1024;

    [[nodiscard]] bool has_buffers() const noexcept { return !buffers_.empty(); }
    /// Becomes readable when something has come back.
    [[nodiscard]] int ring_fd() const noexcept;
    [[nodiscard]] unsigned in_flight() const noexcept { return in_flight_; }
    [[nodiscard]] bool has_room() const noexcept { return in_flight_ < depth_; }

    // Each only where has_room(). `pieces`, at most kMostPieces, and the memory they are stay valid until it comes
    // back.
    void read(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces);
    /// `durable`: comes back once it is on stable storage (RWF_DSYNC).
    void write(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces, bool durable);
    /// fdatasync()
    void flush(std::uint64_t token);
    /// fallocate(); `mode` as there.
    void allocate(std::uint64_t token, int mode, std::uint64_t offset, std::uint64_t bytes);

    /// Gives the kernel what has been queued. False where it is short of memory for all of it: try again.
    [[nodiscard]] bool submit();

    struct Completion {
        std::uint64_t token;
        int result; ///< bytes, or -errno
    };
    /// What has come back, at most `completions.size()` of it; returns how many.
    std::size_t reap(std::span<Completion> completions) noexcept;

  private:
    struct Ring;
    void transfer(bool write, std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces, int flags);
    [[nodiscard]] int buffer_of(const iovec& piece) const noexcept;

    unsigned depth_;
    unsigned in_flight_ = 0;
    std::vector<iovec> buffers_;
    std::unique_ptr<Ring> ring_;
};

} // namespace vmm::devices
