// A raw disk image or a block device of the host, opened, checked and locked.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "kvm/host/unique_fd.hpp"

namespace vmm::devices {

/// What is behind a disk of the guest. Its content is never looked at, because it has no format.
///
/// It is locked as long as it lives (fcntl F_OFD_SETLK, on all of it): for reading if it is opened read-only, otherwise
/// for writing. So a second writer is refused, also one in another process. A file system without such locks is
/// refused, too, unless `Options::lock` says to do without.
///
/// Threads: any.
class DiskImage {
  public:
    struct Options {
        bool read_only = false;
        bool direct = false; ///< O_DIRECT: past the host's page cache
        /// How long a disk that is in use is waited for. When a process is killed, the kernel takes its io_uring apart
        /// later, and only then releases the files it had open. So a process that is restarted at once has to wait.
        std::chrono::milliseconds patience{0};
        /// False: there is no lock. A block device that is written to is opened with O_EXCL in any case.
        bool lock = true;
        /// The size of the guest's sectors, in bytes: 512 or 4096.
        std::uint32_t sector_bytes = 512;
    };

    /// An image that is open, and not locked yet.
    struct Opened {
        UniqueFd file{};
        UniqueFd tail{}; ///< with Options::direct: the same image without O_DIRECT, for a part that is too short for it
    };
    /// Opens `path` for a process that may not open it itself. Throws Error as the constructor does.
    [[nodiscard]] static Opened open(const std::string& path, const Options& options);

    /// Opens, checks and locks `path`.
    /// Throws Error if the file cannot be opened, cannot be written (unless `read_only`), is neither a regular file nor
    /// a block device, is empty or has no whole number of sectors, knows no direct I/O although that is asked for, is
    /// in use, or cannot be locked.
    DiskImage(std::string path, const Options& options);
    /// Takes an image that somebody else has opened; `path` is its name for messages. A block device that is written to
    /// has to be open with O_EXCL. Throws Error as above, and if it is open for something else than is asked for.
    DiskImage(std::string path, Opened opened, const Options& options);

    /// Gives the lock up, so that another process can have the image, and reclaim() takes it again: nothing is read or
    /// written meanwhile. With `flush` all that was written is on the medium before, for a reader on another host. A
    /// block device of this host stays taken, because it has no such lock. Throws Error: it cannot be flushed; another
    /// one uses it now.
    void release(bool flush);
    void reclaim();

    [[nodiscard]] const std::string& path() const noexcept { return path_; }
    [[nodiscard]] int fd() const noexcept { return fd_.get(); } ///< on loan
    [[nodiscard]] bool is_read_only() const noexcept { return options_.read_only; }
    [[nodiscard]] bool is_direct() const noexcept { return options_.direct; }

    // What the guest sees follows from the image and the options alone, so that an image can move between hosts.

    [[nodiscard]] std::uint64_t sectors() const noexcept { return bytes_ / kSectorBytes; } ///< of 512 bytes
    /// The size of the guest's sectors, in bytes. The guest's I/O is a multiple of it.
    [[nodiscard]] std::uint32_t logical_block_bytes() const noexcept { return options_.sector_bytes; }
    /// The smallest write that the guest should take for cheap, in bytes.
    [[nodiscard]] static constexpr std::uint32_t physical_block_bytes() noexcept { return 4096; }

    // What the host demands of I/O on fd(), in bytes. Each is a power of two, and the guest never hears of it.

    /// What offsets and lengths must be multiples of: 1 unless `direct`.
    [[nodiscard]] std::uint32_t offset_alignment() const noexcept { return offset_alignment_; }
    /// What addresses of memory must be multiples of: 1 unless `direct`.
    [[nodiscard]] std::uint32_t memory_alignment() const noexcept { return memory_alignment_; }
    /// What fallocate()'s offset and length must be multiples of: 1 for a file, a block of the host's for a device.
    [[nodiscard]] std::uint32_t allocate_alignment() const noexcept { return allocate_alignment_; }
    /// If the last part of the image is shorter than offset_alignment(), this is where it begins, and tail_fd() is a
    /// descriptor without O_DIRECT for it. Otherwise this is the image's end, and tail_fd() is -1.
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
    std::uint32_t device_block_bytes_ = 1; ///< of a block device: its logical blocks
    std::uint32_t offset_alignment_ = 1;
    std::uint32_t memory_alignment_ = 1;
    std::uint32_t allocate_alignment_ = 1;
};

} // namespace vmm::devices
