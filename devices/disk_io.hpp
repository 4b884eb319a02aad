// Asynchronous I/O on a disk image.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "devices/disk_image.hpp"
#include "devices/disk_io_kind.hpp"

namespace vmm::devices {

/// What I/O goes to. Both descriptors are loans.
struct DiskFiles {
    int fd = -1;
    int tail_fd = -1; ///< takes the place of `fd` from `tail_begins` on; -1: there is no such part
    std::uint64_t tail_begins = UINT64_MAX; ///< in bytes. No operation lies on both sides of it.
};

/// Operations on one disk. They are queued, go to the kernel together with submit(), and come back in any order, each
/// with the token it was queued with.
///
/// The result of a read or a write may be less than what was asked for: who wants the rest asks again.
///
/// Threads: one at a time.
class DiskIo {
  public:
    static constexpr std::size_t kMostBufferBytes = std::size_t{1} << 30;
    static constexpr unsigned kMostBuffers = 16384;
    /// The most pieces of memory in one operation (UIO_MAXIOV).
    static constexpr std::size_t kMostPieces = 1024;

    DiskIo() = default;
    DiskIo(const DiskIo&) = delete;
    DiskIo(DiskIo&&) = delete;
    DiskIo& operator=(const DiskIo&) = delete;
    DiskIo& operator=(DiskIo&&) = delete;
    /// Only when nothing is in flight: the kernel would go on writing to the memory of what is.
    virtual ~DiskIo() = default;

    [[nodiscard]] virtual DiskIoKind kind() const noexcept = 0;

    /// Tells the kernel of memory that stays where it is, in pieces of at most kMostBufferBytes: I/O on one piece of it
    /// spares the kernel looking its pages up. They are pinned as long as this lives. False where the kernel refuses:
    /// then all goes on without.
    [[nodiscard]] virtual bool register_buffers(std::span<const std::span<std::byte>> buffers) = 0;

    /// Becomes readable when something has come back.
    [[nodiscard]] virtual int fd() const noexcept = 0;
    [[nodiscard]] virtual bool has_room() const noexcept = 0;

    // Each only where has_room(). `pieces`, 1 to kMostPieces, and the memory they are stay valid until it comes back.
    // The result is a number of bytes, 0 for the last two, or -errno.

    virtual void read(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces) = 0;
    virtual void write(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces) = 0;
    virtual void flush(std::uint64_t token) = 0; ///< fdatasync()
    /// fallocate(); `mode` as there.
    virtual void allocate(std::uint64_t token, int mode, std::uint64_t offset, std::uint64_t bytes) = 0;

    /// Gives the kernel what has been queued. False where it is short of memory for all of it: try again.
    [[nodiscard]] virtual bool submit() = 0;

    struct Completion {
        std::uint64_t token;
        int result; ///< what was done, or -errno
    };
    /// What has come back, at most `completions.size()` of it; returns how many. It may queue what an operation still
    /// needs: submit() follows it.
    [[nodiscard]] virtual std::size_t reap(std::span<Completion> completions) = 0;

    /// Gives back, with -ECANCELED, what was queued and has not begun. What has begun goes on. reap() follows it.
    virtual void abandon() = 0;
};

struct DiskIoChoice {
    std::unique_ptr<DiskIo> io;
    std::string why_threads; ///< why there is no io_uring although `kAuto` would have taken it; else empty
};

/// I/O on `image`, which outlives it, for at most `depth` operations at once, of any offset, length and memory,
/// whatever the host wants them to be. All descriptors and the first thread that it needs exist then. Throws Error: it
/// cannot be had.
[[nodiscard]] DiskIoChoice make_disk_io(const DiskImage& image, unsigned depth, DiskIoKind kind);

/// Why this process cannot have an io_uring for a disk, with advice; empty: it can.
[[nodiscard]] std::string why_no_uring();

} // namespace vmm::devices
