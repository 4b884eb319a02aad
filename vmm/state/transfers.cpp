#include "vmm/state/transfers.hpp"

#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "devices/thread_disk_io.hpp"
#include "devices/uring_disk_io.hpp"
#include "kvm/host/error.hpp"

namespace vmm {

namespace {

constexpr int kForEver = -1;

std::unique_ptr<devices::DiskIo> make_io(int fd, unsigned depth, bool cached) {
    const devices::DiskFiles files{.fd = fd};
    try {
        return std::make_unique<devices::UringDiskIo>(files, depth);
    } catch (const devices::UringRefused&) {
        return std::make_unique<devices::ThreadDiskIo>(files, depth, cached);
    }
}

} // namespace

Transfers::Transfers(int fd, std::string name, bool cached) : name_(std::move(name)), io_(make_io(fd, kDepth, cached)) {
    for (std::size_t slot = 0; slot < pieces_.size(); ++slot) {
        free_.push_back(slot);
    }
}

Transfers::~Transfers() {
    while (free_.size() < pieces_.size()) { // otherwise the kernel would write to memory that has another use by then
        try {
            wait_for_some();
        } catch (const Error&) { // finish() was not called, so the caller knows of a failure already
        }
    }
}

void Transfers::write(std::uint64_t offset, std::span<const std::byte> bytes) {
    // An operation has the same kind of pointer for both directions.
    begin(true, offset, {const_cast<std::byte*>(bytes.data()), bytes.size()});
}

void Transfers::read(std::uint64_t offset, std::span<std::byte> bytes) {
    begin(false, offset, bytes);
}

void Transfers::begin(bool is_write, std::uint64_t offset, std::span<std::byte> bytes) {
    while (!bytes.empty()) {
        while (free_.empty()) {
            wait_for_some();
        }
        const std::size_t length = std::min(bytes.size(), kMostBytesAtOnce);
        const std::size_t slot = free_.front();
        free_.pop_front();
        pieces_[slot] = {is_write, offset, {bytes.data(), length}};
        queue(slot);
        offset += length;
        bytes = bytes.subspan(length);
    }
}

void Transfers::queue(std::size_t slot) {
    const Piece& piece = pieces_[slot];
    const std::span pieces(&piece.bytes, 1);
    if (piece.is_write) {
        io_->write(slot, piece.offset, pieces);
    } else {
        io_->read(slot, piece.offset, pieces);
    }
}

void Transfers::wait_for_some() {
    constexpr int kShortOfMemoryMs = 10;
    const bool submitted = io_->submit();
    pollfd ready{io_->fd(), POLLIN, 0};
    static_cast<void>(::poll(&ready, 1, submitted ? kForEver : kShortOfMemoryMs));
    std::array<devices::DiskIo::Completion, kDepth> completions{};
    const std::size_t count = io_->reap(completions);
    const Piece* failed = nullptr;
    int error_number = 0;
    for (const auto& completion : std::span(completions).first(count)) {
        Piece& piece = pieces_[completion.token];
        if (completion.result <= 0 && completion.result != -EINTR && completion.result != -EAGAIN) {
            failed = &piece;
            error_number = -completion.result;
            free_.push_back(completion.token);
            continue;
        }
        const auto done = static_cast<std::size_t>(std::max(completion.result, 0));
        piece.offset += done;
        piece.bytes.iov_base = static_cast<std::byte*>(piece.bytes.iov_base) + done;
        piece.bytes.iov_len -= done;
        if (piece.bytes.iov_len == 0) {
            free_.push_back(completion.token);
        } else {
            queue(completion.token);
        }
    }
    if (failed != nullptr) {
        fail(*failed, error_number);
    }
}

void Transfers::finish() {
    while (free_.size() < pieces_.size()) {
        wait_for_some();
    }
}

void Transfers::fail(const Piece& piece, int error_number) const {
    if (error_number == 0) {
        throw Error("cannot " + std::string(piece.is_write ? "write " : "read ") + name_ +
                    (piece.is_write ? ": the file system takes nothing more"
                                    : ": it ends too early, so that it is not whole (use another copy of it)"));
    }
    throw_errno(error_number, std::string(piece.is_write ? "write " : "read ") + name_,
                {{ENOSPC, "make room on its file system, or use another one"},
                 {EDQUOT, "the quota of its file system is used up: make room, or use another one"},
                 {EFBIG, "raise `ulimit -f`, or use another file system"},
                 {EIO, "the disk it lies on is broken: use another one"}});
}

} // namespace vmm
