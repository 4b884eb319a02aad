// A raw disk image or block device of the host's: opened, checked and locked.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "kvm/unique_fd.hpp"

namespace vmm::devices {

/// What is behind a disk of the guest's. Its content is never looked at: it has no format.
///
/// As long as it lives it is locked (fcntl F_OFD_SETLK, on all of it), for reading where it is opened read-only, else
/// for writing: a second writer, also in another process, is refused. A file system without such locks is refused, too,
/// unless `Options::lock` says to go without.
///
/// Threads: any.
class DiskImage {
  public:
    struct Options {
        bool read_only = false;
        bool direct = false; ///< O_DIRECT: past the host's page cache
        /// How long one that is in use is waited for. When a process is killed, the kernel takes its io_uring apart
        /// later, and only then gives back what it had open; whoever restarts it at once is not to be refused.
        std::chrono::milliseconds patience{0};
        /// Whether it is locked at all. A block device that is written to is opened with O_EXCL in any case.
        bool lock = true;
    };

    /// Throws Error: it cannot be opened so, is neither a regular file nor a block device, is empty or no whole number
    /// of sectors, is in use, or cannot be locked.
    DiskImage(std::string path, const Options& options);

    [[nodiscard]] const std::string& path() const noexcept { return path_; }
    [[nodiscard]] int fd() const noexcept { return fd_.get(); } ///< on loan
    [[nodiscard]] bool is_read_only() const noexcept { return options_.read_only; }
    [[nodiscard]] bool is_direct() const noexcept { return options_.direct; }
    [[nodiscard]] std::uint64_t sectors() const noexcept { return bytes_ / kSectorBytes; }
    /// What offsets and lengths of I/O should be multiples of, in bytes; with `direct` they must be. 512 to 4096.
    [[nodiscard]] std::uint32_t logical_block_bytes() const noexcept { return logical_block_bytes_; }
    /// The smallest write that needs no read before it, in bytes; a multiple of logical_block_bytes().
    [[nodiscard]] std::uint32_t physical_block_bytes() const noexcept { return physical_block_bytes_; }
    /// What addresses of memory must be multiples of, in bytes: 1 unless `direct`.
    [[nodiscard]] std::uint32_t memory_alignment() const noexcept { return memory_alignment_; }

    static constexpr std::uint64_t kSectorBytes = 512;

  private:
    void lock() const;
    void measure();

    std::string path_;
    Options options_;
    UniqueFd fd_;
    std::uint64_t bytes_ = 0;
    std::uint32_t logical_block_bytes_ = 512;
    std::uint32_t physical_block_bytes_ = 4096;
    std::uint32_t memory_alignment_ = 1;
};

} // namespace vmm::devices
