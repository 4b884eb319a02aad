#include "devices/disk_image.hpp"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <thread>
#include <utility>

#include "kvm/error.hpp"

namespace vmm::devices {

namespace {

constexpr std::uint32_t kLargestBlock = 4096;

/// Tries again and again as long as it is `busy`, for as long as `patience` says.
template <typename Busy, typename Try>
void wait_while(Busy busy, std::chrono::milliseconds patience, Try try_again) {
    constexpr std::chrono::milliseconds kPause{10};
    const auto end = std::chrono::steady_clock::now() + patience;
    while (busy() && std::chrono::steady_clock::now() < end) {
        std::this_thread::sleep_for(kPause);
        try_again();
    }
}

UniqueFd open_image(const std::string& path, const DiskImage::Options& options) {
    // Without O_NONBLOCK a fifo would be waited for. With O_EXCL the kernel refuses a block device that it has mounted,
    // or that is open so by another name (open(2)).
    struct stat status {};
    const bool is_device = ::stat(path.c_str(), &status) == 0 && S_ISBLK(status.st_mode);
    const int flags = (options.read_only ? O_RDONLY : O_RDWR | (is_device ? O_EXCL : 0)) |
                      (options.direct ? O_DIRECT : 0) | O_CLOEXEC | O_NONBLOCK;
    UniqueFd fd(::open(path.c_str(), flags));
    wait_while([&] { return !fd && errno == EBUSY && is_device; }, options.patience,
               [&] { fd = UniqueFd(::open(path.c_str(), flags)); });
    if (!fd) {
        std::string advice;
        if (errno == EBUSY && is_device) {
            advice = "it is mounted, or another program writes to it: unmount it, or end that program";
        } else if (!options.read_only && (errno == EACCES || errno == EROFS || errno == EPERM)) {
            advice = "to read it only, write \"" + path + ",ro\"";
        } else if (options.direct && errno == EINVAL) {
            advice = "its file system knows no direct I/O: leave out \"direct\"";
        }
        throw_errno(errno, "open the disk " + path + (options.read_only ? "" : " for writing"), advice);
    }
    return fd;
}

/// What to do where the lock itself failed.
std::string lock_advice(int error_number, const std::string& path) {
    const std::string without = "\"" + path +
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

DiskImage::DiskImage(std::string path, const Options& options)
    : path_(std::move(path)), options_(options), fd_(open_image(path_, options)) {
    measure();
    if (options_.lock) {
        lock();
    }
    // With O_NONBLOCK io_uring may hand back what is not in the page cache, instead of waiting for it.
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
    if (S_ISBLK(status.st_mode)) {
        int logical = 0;
        unsigned physical = 0;
        if (::ioctl(fd_.get(), BLKGETSIZE64, &bytes_) != 0 || ::ioctl(fd_.get(), BLKSSZGET, &logical) != 0 ||
            ::ioctl(fd_.get(), BLKPBSZGET, &physical) != 0) {
            throw_errno(errno, "ask for the size of the block device " + path_);
        }
        logical_block_bytes_ = static_cast<std::uint32_t>(logical);
        physical_block_bytes_ = physical;
    } else if (S_ISREG(status.st_mode)) {
        bytes_ = static_cast<std::uint64_t>(status.st_size);
    } else {
        throw Error(tried + "it is neither a regular file nor a block device");
    }
    if (bytes_ == 0) {
        throw Error(tried + "it is empty (make it larger: truncate -s 10G " + path_ + ")");
    }
    if (bytes_ % kSectorBytes != 0) {
        throw Error(tried + "it has " + std::to_string(bytes_) +
                    " bytes, which are no whole sectors of 512 (make it larger: truncate -s %512 " + path_ + ")");
    }
    if (options_.direct) {
        // What every disk takes, where the file system does not say better.
        logical_block_bytes_ = S_ISBLK(status.st_mode) ? logical_block_bytes_ : kLargestBlock;
        memory_alignment_ = kLargestBlock;
#ifdef STATX_DIOALIGN
        struct statx extended {};
        if (::statx(fd_.get(), "", AT_EMPTY_PATH, STATX_DIOALIGN, &extended) == 0 &&
            (extended.stx_mask & STATX_DIOALIGN) != 0 && extended.stx_dio_offset_align != 0) {
            logical_block_bytes_ = std::max<std::uint32_t>(512, extended.stx_dio_offset_align);
            memory_alignment_ = extended.stx_dio_mem_align;
        }
#endif
        if (bytes_ % logical_block_bytes_ != 0) {
            throw Error(tried + "with \"direct\" its size has to be a multiple of " +
                        std::to_string(logical_block_bytes_) + " bytes (truncate -s %" +
                        std::to_string(logical_block_bytes_) + " " + path_ + ", or leave out \"direct\")");
        }
    }
    physical_block_bytes_ = std::max(physical_block_bytes_, logical_block_bytes_);
}

void DiskImage::lock() const {
    struct flock range {};
    range.l_type = options_.read_only ? F_RDLCK : F_WRLCK;
    range.l_whence = SEEK_SET; // From 0, and with length 0 to the end, wherever that is.
    const auto lock = [&] { return ::fcntl(fd_.get(), F_OFD_SETLK, &range) == 0; };
    bool locked = lock();
    wait_while([&] { return !locked && (errno == EAGAIN || errno == EACCES); }, options_.patience,
               [&] { locked = lock(); });
    if (locked) {
        return;
    }
    if (errno == EAGAIN || errno == EACCES) {
        throw Error(
            "cannot use the disk " + path_ + ": another process, or another disk of this guest, " +
            (options_.read_only ? "writes to it" : "uses it (only readers can share a disk: \",ro\" for each)"));
    }
    const int error_number = errno;
    throw_errno(error_number, "lock the disk " + path_, lock_advice(error_number, path_));
}

} // namespace vmm::devices
