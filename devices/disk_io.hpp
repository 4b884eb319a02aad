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

/// The files that I/O goes to. Both descriptors are loans.
struct DiskFiles {
    int fd = -1;
    int tail_fd = -1; ///< takes the place of `fd` from `tail_begins` on; -1 if there is no such part
    std::uint64_t tail_begins = UINT64_MAX; ///< in bytes. No operation lies on both sides of it.
};

/// Operations on one disk. They are queued, go to the kernel together with submit(), and come back in any order. Each
/// comes back with the token that it was queued with.
///
/// The result of a read or a write may be less than what was asked for. To get the rest, ask again.
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
    /// To be destroyed only when nothing is in flight: otherwise the kernel would go on writing to the memory of an
    /// operation.
    virtual ~DiskIo() = default;

    [[nodiscard]] virtual DiskIoKind kind() const noexcept = 0;

    /// Tells the kernel of memory that stays where it is, in pieces of at most kMostBufferBytes. For I/O on one of
    /// these pieces the kernel need not look up its pages. The pieces are pinned as long as this object lives. Returns
    /// false if the kernel refuses; then all goes on without.
    [[nodiscard]] virtual bool register_buffers(std::span<const std::span<std::byte>> buffers) = 0;

    /// A descriptor that becomes readable when something has come back.
    [[nodiscard]] virtual int fd() const noexcept = 0;
    [[nodiscard]] virtual bool has_room() const noexcept = 0;

    // These may be called only if has_room(). `pieces` has 1 to kMostPieces entries; it and the memory it names stay
    // valid until the operation comes back. The result is a number of bytes, which is 0 for flush() and allocate(), or
    // -errno.

    virtual void read(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces) = 0;
    virtual void write(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces) = 0;
    virtual void flush(std::uint64_t token) = 0; ///< fdatasync()
    /// fallocate(), which explains `mode`.
    virtual void allocate(std::uint64_t token, int mode, std::uint64_t offset, std::uint64_t bytes) = 0;

    /// Gives the kernel what has been queued. Returns false if the kernel is short of memory for all of it: try again
    /// later.
    [[nodiscard]] virtual bool submit() = 0;

    struct Completion {
        std::uint64_t token;
        int result; ///< what was done, or -errno
    };
    /// Takes what has come back, at most `completions.size()` of it, and returns how many that is. It may queue what an
    /// operation still needs, so call submit() after it.
    [[nodiscard]] virtual std::size_t reap(std::span<Completion> completions) = 0;

    /// Gives back, with -ECANCELED, what was queued and has not begun. What has begun goes on. Call reap() after it.
    virtual void abandon() = 0;
};

struct DiskIoChoice {
    std::unique_ptr<DiskIo> io;
    std::string why_threads; ///< why `kAuto` did not take io_uring; otherwise empty
};

/// Makes I/O on `image`, which outlives it, for at most `depth` operations at once. Offsets, lengths and memory may be
/// any, whatever the host demands. All descriptors and the first thread that it needs exist afterwards.
/// Throws Error if it cannot be had.
[[nodiscard]] DiskIoChoice make_disk_io(const DiskImage& image, unsigned depth, DiskIoKind kind);

/// Why this process cannot have an io_uring for a disk, with advice. Empty if it can.
[[nodiscard]] std::string why_no_uring();

} // namespace vmm::devices
