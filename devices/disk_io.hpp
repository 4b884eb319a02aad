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

/// The files that the I/O uses. Both descriptors are loans.
struct DiskFiles {
    int fd = -1;
    int tail_fd = -1;                       ///< replaces `fd` from `tail_begins` on; -1 if there is no such part
    std::uint64_t tail_begins = UINT64_MAX; ///< in bytes. No operation crosses it.
};

/// Operations on one disk. They are queued, go to the kernel together with submit(), and come back in any order. Each
/// operation comes back with its token.
///
/// A read or a write may transfer less than was asked for. The caller must ask again for the rest.
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
    /// Must be destroyed only when nothing is in flight: otherwise the kernel would go on writing to the memory of an
    /// operation.
    virtual ~DiskIo() = default;

    [[nodiscard]] virtual DiskIoKind kind() const noexcept = 0;

    /// Registers memory with the kernel that stays where it is, in pieces of at most kMostBufferBytes. For I/O on these
    /// pieces the kernel need not look up the pages. The pieces are pinned as long as this object lives. Returns false
    /// if the kernel refuses; I/O then works without it.
    [[nodiscard]] virtual bool register_buffers(std::span<const std::span<std::byte>> buffers) = 0;

    /// A descriptor that is readable when an operation has come back.
    [[nodiscard]] virtual int fd() const noexcept = 0;
    [[nodiscard]] virtual bool has_room() const noexcept = 0;

    // These may be called only if has_room(). `pieces` has 1 to kMostPieces entries; `pieces` and the memory that it
    // names must stay valid until the operation comes back. The result is a number of bytes (0 for flush() and
    // allocate()), or -errno.

    virtual void read(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces) = 0;
    virtual void write(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces) = 0;
    virtual void flush(std::uint64_t token) = 0; ///< fdatasync()
    /// fallocate(2), which defines `mode`.
    virtual void allocate(std::uint64_t token, int mode, std::uint64_t offset, std::uint64_t bytes) = 0;

    /// Gives the queued operations to the kernel. Returns false if the kernel is short of memory for all of them: try
    /// again later.
    [[nodiscard]] virtual bool submit() = 0;

    struct Completion {
        std::uint64_t token;
        int result; ///< the number of bytes that were done, or -errno
    };
    /// Takes operations that have come back, at most `completions.size()`, and returns their number. It may queue
    /// further steps of an operation, so call submit() afterwards.
    [[nodiscard]] virtual std::size_t reap(std::span<Completion> completions) = 0;

    /// Gives back the queued operations that have not begun, with -ECANCELED. Those that have begun go on. Call reap()
    /// afterwards.
    virtual void abandon() = 0;
};

struct DiskIoChoice {
    std::unique_ptr<DiskIo> io;
    std::string why_threads; ///< why `kAuto` did not choose io_uring; otherwise empty
};

/// Makes I/O on `image`, which must outlive it, for at most `depth` operations at once. Offsets, lengths and memory may
/// be any, whatever the host demands. All descriptors and the first thread that it needs exist afterwards.
/// Throws Error if the host refuses.
[[nodiscard]] DiskIoChoice make_disk_io(const DiskImage& image, unsigned depth, DiskIoKind kind);

/// Why this process cannot use io_uring for a disk, with advice. Empty if it can.
[[nodiscard]] std::string why_no_uring();

} // namespace vmm::devices
