#include "devices/uring_disk_io.hpp"

#include <liburing.h>

#include <array>
#include <cassert>
#include <cerrno>
#include <string>

#include "kvm/host/error.hpp"

namespace vmm::devices {

namespace {

constexpr std::array<std::uint8_t, 6> kOperations{IORING_OP_READV,       IORING_OP_WRITEV, IORING_OP_READ_FIXED,
                                                  IORING_OP_WRITE_FIXED, IORING_OP_FSYNC,  IORING_OP_FALLOCATE};

/// Throws the exception for `error`, a value of errno. A shortage of descriptors becomes an Error, because it would
/// also affect the replacement of the ring. Every other error concerns only io_uring.
[[noreturn]] void refuse(int error, const std::string& tried) {
    std::string advice;
    switch (error) {
    case EMFILE:
        throw_errno(error, tried, "raise the number of open files with `ulimit -n`");
    case ENFILE:
        throw_errno(error, tried, "the host has too many open files: raise fs.file-max");
    case ENOSYS:
        advice = "this kernel has no io_uring, or a seccomp filter hides it: allow it";
        break;
    case EPERM:
    case EACCES:
        advice = "kernel.io_uring_disabled, a seccomp filter or a security module forbids io_uring: allow it";
        break;
    case EINVAL:
        advice = "it needs Linux 5.10";
        break;
    case ENOMEM:
        advice = "raise `ulimit -l`, or give this process more memory";
        break;
    default:
        break;
    }
    throw UringRefused("cannot " + tried + ": " + errno_reason(error) + (advice.empty() ? "" : " (" + advice + ")"));
}

} // namespace

struct UringDiskIo::Ring {
    explicit Ring(unsigned entries) {
        io_uring_params parameters{};
        // Only a disabled ring accepts restrictions. With the other two flags, completions are handled when the ring's
        // thread enters the kernel anyway.
        parameters.flags = IORING_SETUP_R_DISABLED | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
        int result = ::io_uring_queue_init_params(entries, &ring, &parameters);
        if (result == -EINVAL) { // Linux before 5.19.
            parameters = {};
            parameters.flags = IORING_SETUP_R_DISABLED;
            result = ::io_uring_queue_init_params(entries, &ring, &parameters);
        }
        if (result < 0) {
            refuse(-result, "make an io_uring for a disk");
        }
    }
    ~Ring() { ::io_uring_queue_exit(&ring); }
    Ring(const Ring&) = delete;
    Ring& operator=(const Ring&) = delete;

    io_uring ring{};
};

UringDiskIo::UringDiskIo(const DiskFiles& files, unsigned depth)
    : depth_(depth), tail_begins_(files.tail_begins), ring_(std::make_unique<Ring>(depth)) {
    io_uring& ring = ring_->ring;
    const std::array fds{files.fd, files.tail_fd};
    if (const int result = ::io_uring_register_files(&ring, fds.data(), files.tail_fd >= 0 ? 2 : 1); result < 0) {
        refuse(-result, "register a disk with its io_uring");
    }
    std::array<io_uring_restriction, kOperations.size() + 2> restrictions{};
    for (std::size_t i = 0; i < kOperations.size(); ++i) {
        restrictions[i].opcode = IORING_RESTRICTION_SQE_OP;
        restrictions[i].sqe_op = kOperations[i];
    }
    restrictions[kOperations.size()].opcode = IORING_RESTRICTION_REGISTER_OP;
    restrictions[kOperations.size()].register_op = IORING_REGISTER_BUFFERS; // The buffers are registered at activation.
    restrictions.back().opcode = IORING_RESTRICTION_SQE_FLAGS_REQUIRED;
    restrictions.back().sqe_flags = IOSQE_FIXED_FILE;
    // System calls are used because the shared library of liburing 2.3 does not export these two functions.
    const auto number = static_cast<unsigned>(ring.ring_fd);
    int result = ::io_uring_register(number, IORING_REGISTER_RESTRICTIONS, restrictions.data(), restrictions.size());
    if (result >= 0) {
        result = ::io_uring_register(number, IORING_REGISTER_ENABLE_RINGS, nullptr, 0);
    }
    if (result < 0) {
        refuse(-result, "restrict the io_uring of a disk");
    }
    // A seccomp filter may allow a ring to be made, but forbid its use.
    if (result = ::io_uring_enter(number, 0, 0, 0, nullptr); result < 0) {
        refuse(-result, "use the io_uring of a disk");
    }
}

UringDiskIo::~UringDiskIo() = default;

bool UringDiskIo::register_buffers(std::span<const std::span<std::byte>> buffers) {
    assert(buffers.size() <= kMostBuffers && in_flight_ == 0 && buffers_.empty());
    for (const std::span<std::byte> buffer : buffers) {
        assert(buffer.size() <= kMostBufferBytes);
        buffers_.push_back({buffer.data(), buffer.size()});
    }
    if (!buffers_.empty() &&
        ::io_uring_register_buffers(&ring_->ring, buffers_.data(), static_cast<unsigned>(buffers_.size())) < 0) {
        buffers_.clear();
        return false;
    }
    return true;
}

int UringDiskIo::fd() const noexcept {
    return ring_->ring.ring_fd;
}

int UringDiskIo::buffer_of(const iovec& piece) const noexcept {
    const auto* const begin = static_cast<const std::byte*>(piece.iov_base);
    for (std::size_t i = 0; i < buffers_.size(); ++i) {
        const auto* const base = static_cast<const std::byte*>(buffers_[i].iov_base);
        if (begin >= base && piece.iov_len <= buffers_[i].iov_len &&
            static_cast<std::size_t>(begin - base) <= buffers_[i].iov_len - piece.iov_len) {
            return static_cast<int>(i);
        }
    }
    return -1;
}

/// The index of the descriptor among the registered ones.
int UringDiskIo::file_of(std::uint64_t offset) const noexcept {
    return offset >= tail_begins_ ? 1 : 0;
}

void UringDiskIo::transfer(bool write, std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces) {
    assert(has_room() && !pieces.empty() && pieces.size() <= kMostPieces);
    io_uring_sqe* const entry = ::io_uring_get_sqe(&ring_->ring);
    assert(entry != nullptr); // There is one entry for each operation that may be in flight.
    const int file = file_of(offset);
    if (const int buffer = pieces.size() == 1 ? buffer_of(pieces.front()) : -1; buffer >= 0) {
        const auto length = static_cast<unsigned>(pieces.front().iov_len);
        if (write) {
            ::io_uring_prep_write_fixed(entry, file, pieces.front().iov_base, length, offset, buffer);
        } else {
            ::io_uring_prep_read_fixed(entry, file, pieces.front().iov_base, length, offset, buffer);
        }
    } else if (write) {
        ::io_uring_prep_writev(entry, file, pieces.data(), static_cast<unsigned>(pieces.size()), offset);
    } else {
        ::io_uring_prep_readv(entry, file, pieces.data(), static_cast<unsigned>(pieces.size()), offset);
    }
    entry->flags |= IOSQE_FIXED_FILE;
    ::io_uring_sqe_set_data64(entry, token);
    ++in_flight_;
}

void UringDiskIo::read(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces) {
    transfer(false, token, offset, pieces);
}

void UringDiskIo::write(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces) {
    transfer(true, token, offset, pieces);
}

void UringDiskIo::flush(std::uint64_t token) {
    assert(has_room());
    io_uring_sqe* const entry = ::io_uring_get_sqe(&ring_->ring);
    assert(entry != nullptr);
    ::io_uring_prep_fsync(entry, 0, IORING_FSYNC_DATASYNC);
    entry->flags |= IOSQE_FIXED_FILE;
    ::io_uring_sqe_set_data64(entry, token);
    ++in_flight_;
}

void UringDiskIo::allocate(std::uint64_t token, int mode, std::uint64_t offset, std::uint64_t bytes) {
    assert(has_room());
    io_uring_sqe* const entry = ::io_uring_get_sqe(&ring_->ring);
    assert(entry != nullptr);
    ::io_uring_prep_fallocate(entry, file_of(offset), mode, static_cast<off_t>(offset), static_cast<off_t>(bytes));
    entry->flags |= IOSQE_FIXED_FILE;
    ::io_uring_sqe_set_data64(entry, token);
    ++in_flight_;
}

bool UringDiskIo::submit() {
    while (::io_uring_sq_ready(&ring_->ring) != 0) {
        const int result = ::io_uring_submit(&ring_->ring);
        if (result < 0 && result != -EINTR && result != -EAGAIN && result != -EBUSY) {
            throw_errno(-result, "give the kernel the I/O of a disk");
        }
        if (result == -EAGAIN || result == -EBUSY) {
            return false;
        }
    }
    return true;
}

std::size_t UringDiskIo::reap(std::span<Completion> completions) {
    std::size_t count = 0;
    io_uring_cqe* entry = nullptr;
    while (count < completions.size() && ::io_uring_peek_cqe(&ring_->ring, &entry) == 0 && entry != nullptr) {
        completions[count++] = {::io_uring_cqe_get_data64(entry), entry->res};
        ::io_uring_cqe_seen(&ring_->ring, entry);
        --in_flight_;
    }
    return count;
}

} // namespace vmm::devices
