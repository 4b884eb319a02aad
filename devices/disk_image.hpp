// A raw disk image or a block device of the host, opened, checked and locked.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "kvm/host/unique_fd.hpp"

namespace vmm::devices {

/// The image behind a disk of the guest. Its content is never read to guess a format, because it has none.
///
/// It is locked as long as it lives (fcntl F_OFD_SETLK, the whole file): for reading if it is opened read-only,
/// otherwise for writing. So a second writer is refused, even in another process. A file system without such locks is
/// refused, too, unless `Options::lock` is false.
///
/// Threads: any.
class DiskImage {
  public:
    struct Options {
        bool read_only = false;
        bool direct = false; ///< O_DIRECT: without the host's page cache
        /// How long to wait for a disk that is in use. When a process is killed, the kernel takes down its io_uring
        /// later, and only then releases the files that it had open. So a process that is restarted at once must wait.
        std::chrono::milliseconds patience{0};
        /// False means that no lock is taken. A block device that is written to is opened with O_EXCL in any case.
        bool lock = true;
        /// The size of the guest's sectors, in bytes: 512 or 4096.
        std::uint32_t sector_bytes = 512;
    };

    /// An image that is open, but not locked yet.
    struct Opened {
        UniqueFd file{};
        UniqueFd tail{}; ///< with Options::direct: the same image without O_DIRECT, for a part too short for it
    };
    /// Opens `path` for a process that may not open it itself. Throws Error as the constructor does.
    [[nodiscard]] static Opened open(const std::string& path, const Options& options);

    /// Opens, checks and locks `path`.
    /// Throws Error if the file cannot be opened, cannot be written (unless `read_only`), is neither a regular file nor
    /// a block device, is empty, or is not a whole number of sectors. Throws Error, too, if direct I/O is asked for but
    /// not supported, or if the file is in use or cannot be locked.
    DiskImage(std::string path, const Options& options);
    /// Takes an image that somebody else has opened; `path` is its name for messages. A block device that is written to
    /// must be open with O_EXCL. Throws Error as above, and if the image is not open in the way that `options` ask for.
    DiskImage(std::string path, Opened opened, const Options& options);

    /// release() gives the lock up, so that another process can have the image; reclaim() takes it again. Nothing may
    /// be read or written in between. With `flush`, all written data goes to the medium first, for a reader on another
    /// host. A block device of this host stays taken, because it has no such lock. Throws Error if the image cannot be
    /// flushed, or if another process uses it now.
    void release(bool flush);
    void reclaim();

    [[nodiscard]] const std::string& path() const noexcept { return path_; }
    [[nodiscard]] int fd() const noexcept { return fd_.get(); } ///< on loan
    [[nodiscard]] bool is_read_only() const noexcept { return options_.read_only; }
    [[nodiscard]] bool is_direct() const noexcept { return options_.direct; }

    // The guest's view depends only on the image and the options, so that an image can move between hosts.

    [[nodiscard]] std::uint64_t sectors() const noexcept { return bytes_ / kSectorBytes; } ///< of 512 bytes
    /// The size of the guest's sectors, in bytes. The guest's I/O is always a multiple of it.
    [[nodiscard]] std::uint32_t logical_block_bytes() const noexcept { return options_.sector_bytes; }
    /// The size from which the guest should consider a write cheap, in bytes.
    [[nodiscard]] static constexpr std::uint32_t physical_block_bytes() noexcept { return 4096; }

    // The host's demands on I/O on fd(), in bytes. Each is a power of two, and the guest never sees them.

    /// Offsets and lengths must be multiples of this: 1 unless `direct`.
    [[nodiscard]] std::uint32_t offset_alignment() const noexcept { return offset_alignment_; }
    /// Addresses of memory must be multiples of this: 1 unless `direct`.
    [[nodiscard]] std::uint32_t memory_alignment() const noexcept { return memory_alignment_; }
    /// The offset and length of fallocate() must be multiples of this: 1 for a file, a block of the host for a device.
    [[nodiscard]] std::uint32_t allocate_alignment() const noexcept { return allocate_alignment_; }
    /// The beginning of the last part of the image, if that part is shorter than offset_alignment(); tail_fd() is then
    /// a descriptor without O_DIRECT for it. Otherwise this is the end of the image, and tail_fd() is -1.
    [[nodiscard]] std::uint64_t tail_begins() const noexcept { return bytes_ - bytes_ % offset_alignment_; }
    [[nodiscard]] int tail_fd() const noexcept { return tail_fd_.get(); } ///< on loan

    static constexpr std::uint64_t kSectorBytes = 512;

  private:
    void set_up();
    void check_access() const;
    void lock() const;
    void measure();
    void find_alignment(bool is_device);
    void open_tail();

    std::string path_;
    Options options_;
    UniqueFd fd_;
    UniqueFd tail_fd_;
    std::uint64_t bytes_ = 0;
    std::uint32_t device_block_bytes_ = 1; ///< for a block device: the size of its logical blocks
    std::uint32_t offset_alignment_ = 1;
    std::uint32_t memory_alignment_ = 1;
    std::uint32_t allocate_alignment_ = 1;
};

} // namespace vmm::devices
