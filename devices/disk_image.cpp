#include "devices/disk_image.hpp"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <thread>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/retry.hpp"

namespace vmm::devices {

namespace {

/// An alignment that every file system and device accepts. It is used if the host does not state its demands for direct
/// I/O.
constexpr std::uint32_t kSafeAlignment = 4096;
/// The largest block of a host that we support. It is the kernel's limit for block devices.
constexpr std::uint32_t kLargestBlock = 65536;

/// Tries again as long as it is `busy`, but no longer than `patience`.
template <typename Busy, typename Try>
void wait_while(Busy busy, std::chrono::milliseconds patience, Try try_again) {
    constexpr std::chrono::milliseconds kPause{10};
    const auto end = std::chrono::steady_clock::now() + patience;
    while (busy() && std::chrono::steady_clock::now() < end) {
        std::this_thread::sleep_for(kPause);
        try_again();
    }
}

/// What the reader can do if the image cannot be opened.
std::string open_advice(int error, const std::string& path, const DiskImage::Options& options, bool is_device) {
    const std::string read_only = "to read it only, write \"" + path + ",ro\"";
    switch (error) {
    case EBUSY:
        return is_device ? "it is mounted, or another program writes to it: unmount it, or end that program" : "";
    case EACCES:
        return options.read_only ? "give this user the right to read it"
               : is_device       ? "the device is read-only, or this user may not write it; " + read_only
                                 : "give this user the right to write it; " + read_only;
    case EROFS:
        return "it is on a file system that is mounted read-only, or is a read-only device: " + read_only;
    case EPERM:
        return options.read_only ? "" : "it is immutable, append-only or write-protected (see lsattr): " + read_only;
    case ETXTBSY:
        return "it is in use as a program or as swap space; " + read_only;
    case ENOENT:
        return "make it (truncate -s 10G " + path + "), or correct its name";
    case ENOMEDIUM:
        return "put the medium into the drive";
    case EMFILE:
        return "raise the number of open files with `ulimit -n`";
    case ENFILE:
        return "the host has too many open files: raise fs.file-max";
    case EINVAL:
        return options.direct ? "its file system knows no direct I/O: leave out \"direct\"" : "";
    default:
        return "";
    }
}

/// Opens the image again for its last part, which direct I/O cannot reach.
UniqueFd open_for_tail(const std::string& path, const DiskImage::Options& options) {
    UniqueFd fd(::open(path.c_str(), (options.read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC));
    if (!fd) {
        const int error = errno;
        throw_errno(error, "open the disk " + path + " for its last part, which is too short for direct I/O",
                    open_advice(error, path, options, false));
    }
    return fd;
}

UniqueFd open_image(const std::string& path, const DiskImage::Options& options) {
    // O_NONBLOCK keeps open() from waiting for a fifo. With O_EXCL the kernel refuses a block device that is mounted,
    // or that is open exclusively under another name (open(2)).
    struct stat status {};
    const bool is_device = ::stat(path.c_str(), &status) == 0 && S_ISBLK(status.st_mode);
    const int flags = (options.read_only ? O_RDONLY : O_RDWR | (is_device ? O_EXCL : 0)) |
                      (options.direct ? O_DIRECT : 0) | O_CLOEXEC | O_NONBLOCK;
    UniqueFd fd(::open(path.c_str(), flags));
    wait_while([&] { return !fd && errno == EBUSY && is_device; }, options.patience,
               [&] { fd = UniqueFd(::open(path.c_str(), flags)); });
    if (!fd) {
        const int error = errno;
        throw_errno(error, "open the disk " + path + (options.read_only ? "" : " for writing"),
                    open_advice(error, path, options, is_device));
    }
    return fd;
}

/// What the reader can do if the lock itself failed.
std::string lock_advice(int error_number, const std::string& path) {
    std::string without = "\"" + path +
                          ",lock=off\" goes without the lock: then see to it yourself that nobody "
                          "else writes to it";
    switch (error_number) {
    case EINVAL: // also kernels before Linux 3.15
    case EOPNOTSUPP:
    case ENOSYS:
        return "its file system has no locks; " + without;
    case ENOLCK:
        return "its file system has no locks, or its lock manager does not answer: on NFS start rpc.statd, or mount it "
               "with version 4; " +
               without;
    case EIO:
    case ESTALE:
    case ETIMEDOUT:
        return "the server of its file system does not answer; " + without;
    default:
        return without;
    }
}

} // namespace

DiskImage::Opened DiskImage::open(const std::string& path, const Options& options) {
    Opened opened{.file = open_image(path, options)};
    if (options.direct) {
        opened.tail = open_for_tail(path, options);
    }
    return opened;
}

DiskImage::DiskImage(std::string path, const Options& options)
    : path_(std::move(path)), options_(options), fd_(open_image(path_, options)) {
    set_up();
}

DiskImage::DiskImage(std::string path, Opened opened, const Options& options)
    : path_(std::move(path)), options_(options), fd_(std::move(opened.file)), tail_fd_(std::move(opened.tail)) {
    check_access();
    set_up();
}

/// A descriptor that somebody else has opened may be anything, so this checks it.
void DiskImage::check_access() const {
    const auto check = [this](const UniqueFd& fd) {
        const int flags = ::fcntl(fd.get(), F_GETFL);
        if (flags < 0) {
            throw_errno(errno, "look at the descriptor of the disk " + path_);
        }
        const int access = flags & O_ACCMODE;
        const bool good = (flags & O_PATH) == 0 && (access == O_RDWR || (access == O_RDONLY && options_.read_only));
        if (!good) {
            throw Error("cannot use the descriptor that came for the disk " + path_ + ": it is not open for reading" +
                        (options_.read_only ? "" : " and writing") + " (open it as `vmm ctl` does)");
        }
    };
    check(fd_);
    if (tail_fd_) {
        check(tail_fd_);
    }
}

void DiskImage::set_up() {
    measure();
    if (options_.lock) {
        lock();
    }
    // O_NONBLOCK is removed: with it, io_uring may fail a read of data outside the page cache instead of waiting for
    // it.
    if (::fcntl(fd_.get(), F_SETFL, options_.direct ? O_DIRECT : 0) != 0) {
        throw_errno(errno, "set up the disk " + path_);
    }
}

void DiskImage::measure() {
    const std::string tried = "cannot use " + path_ + " as a disk: ";
    struct stat status {};
    if (::fstat(fd_.get(), &status) != 0) {
        throw_errno(errno, "look at the disk " + path_);
    }
    const bool is_device = S_ISBLK(status.st_mode);
    if (is_device) {
        int logical = 0;
        int read_only = 0;
        if (::ioctl(fd_.get(), BLKGETSIZE64, &bytes_) != 0 || ::ioctl(fd_.get(), BLKSSZGET, &logical) != 0 ||
            ::ioctl(fd_.get(), BLKROGET, &read_only) != 0) {
            throw_errno(errno, "ask for the size of the block device " + path_);
        }
        if (read_only != 0 && !options_.read_only) { // Linux opens it for writing, and then refuses to write.
            throw Error(tried + "the block device cannot be written (to read it only, write \"" + path_ + ",ro\")");
        }
        device_block_bytes_ = static_cast<std::uint32_t>(logical);
    } else if (S_ISREG(status.st_mode)) {
        bytes_ = static_cast<std::uint64_t>(status.st_size);
    } else {
        throw Error(tried + "it is neither a regular file nor a block device");
    }
    if (bytes_ == 0) {
        throw Error(tried + "it is empty (" +
                    (is_device ? "attach a medium to it" : "make it larger: truncate -s 10G " + path_) + ")");
    }
    if (bytes_ % options_.sector_bytes != 0) {
        const std::string size = std::to_string(options_.sector_bytes);
        const std::string smaller = "write \"" + path_ + ",sector=512\"";
        throw Error(tried + "it has " + std::to_string(bytes_) + " bytes, which are no whole sectors of " + size +
                    " (" +
                    (is_device ? smaller
                               : "make it larger: truncate -s %" + size + " " + path_ +
                                     (bytes_ % kSectorBytes == 0 ? ", or " + smaller : "")) +
                    ")");
    }
    find_alignment(is_device);
    open_tail();
}

/// Finds the rules of direct I/O, which differ between hosts. Without O_DIRECT the page cache hides them, except for
/// fallocate() on a block device.
void DiskImage::find_alignment(bool is_device) {
    allocate_alignment_ = device_block_bytes_;
    if (!options_.direct) {
        return;
    }
    offset_alignment_ = is_device ? device_block_bytes_ : kSafeAlignment;
    memory_alignment_ = std::max(kSafeAlignment, device_block_bytes_);
#ifdef STATX_DIOALIGN
    struct statx extended {};
    if (::statx(fd_.get(), "", AT_EMPTY_PATH, STATX_DIOALIGN, &extended) == 0 &&
        (extended.stx_mask & STATX_DIOALIGN) != 0) {
        if (extended.stx_dio_offset_align == 0) {
            throw Error("cannot use " + path_ +
                        " as a disk: its file system knows no direct I/O on it (leave out \"direct\")");
        }
        offset_alignment_ = extended.stx_dio_offset_align;
        memory_alignment_ = std::max<std::uint32_t>(1, extended.stx_dio_mem_align);
    }
#endif
    // The smallest piece of an image is a sector, so finer alignments are not used.
    offset_alignment_ = std::max(offset_alignment_, static_cast<std::uint32_t>(kSectorBytes));
    if (!std::has_single_bit(offset_alignment_) || offset_alignment_ > kLargestBlock ||
        !std::has_single_bit(memory_alignment_) || memory_alignment_ > kLargestBlock) {
        throw Error("cannot use " + path_ + " as a disk: its file system wants direct I/O in pieces of " +
                    std::to_string(offset_alignment_) + " bytes, at addresses that are multiples of " +
                    std::to_string(memory_alignment_) + " (leave out \"direct\")");
    }
}

/// Opens the tail. Direct I/O can neither write less than its alignment, nor keep the file's size if it writes more.
void DiskImage::open_tail() {
    if (tail_begins() == bytes_) {
        tail_fd_.reset();
        return;
    }
    const std::string tried = "open the disk " + path_ + " for its last part, which is too short for direct I/O";
    if (!tail_fd_) {
        tail_fd_ = open_for_tail(path_, options_);
    }
    struct stat one {};
    struct stat other {};
    if (::fstat(fd_.get(), &one) != 0 || ::fstat(tail_fd_.get(), &other) != 0) {
        throw_errno(errno, tried);
    }
    if (one.st_dev != other.st_dev || one.st_ino != other.st_ino) {
        throw Error("cannot " + tried + ": another file has taken its name meanwhile (try again)");
    }
}

void DiskImage::release(bool flush) {
    if (flush && !options_.read_only && uninterrupted([this] { return ::fdatasync(fd_.get()); }) != 0) {
        throw_errno(errno, "flush the disk " + path_);
    }
    if (options_.lock) {
        struct flock range {};
        range.l_type = F_UNLCK;
        range.l_whence = SEEK_SET;
        static_cast<void>(::fcntl(fd_.get(), F_OFD_SETLK, &range)); // Unlocking cannot fail here.
    }
}

void DiskImage::reclaim() {
    if (options_.lock) {
        lock();
    }
}

void DiskImage::lock() const {
    struct flock range {};
    range.l_type = options_.read_only ? F_RDLCK : F_WRLCK;
    range.l_whence = SEEK_SET; // The lock begins at 0. A length of 0 means up to the end, wherever that is.
    const auto lock = [&] { return ::fcntl(fd_.get(), F_OFD_SETLK, &range) == 0; };
    bool locked = lock();
    wait_while([&] { return !locked && (errno == EAGAIN || errno == EACCES); }, options_.patience,
               [&] { locked = lock(); });
    if (locked) {
        return;
    }
    if (errno == EAGAIN || errno == EACCES) {
        throw Error("cannot use the disk " + path_ + ": another process, or another disk of this guest, " +
                    (options_.read_only
                         ? "writes to it"
                         : "uses it (end it, or take a copy: only readers can share a disk, \",ro\" for each)"));
    }
    const int error_number = errno;
    throw_errno(error_number, "lock the disk " + path_, lock_advice(error_number, path_));
}

} // namespace vmm::devices
