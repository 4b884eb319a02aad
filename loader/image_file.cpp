#include "loader/image_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/host/stoppable_read.hpp"

namespace vmm::loader {
namespace {

/// The bytes of one read call. A slow host gives them well within a second.
constexpr std::uint64_t kChunkBytes = kMiB;

std::string reading(const std::string& name) {
    return "read " + name;
}

/// Reads until `out` is full or the file ends. Returns the number of bytes read.
std::size_t read_fully(int fd, std::uint64_t offset, std::span<std::byte> out, int stop_fd, const std::string& name) {
    std::size_t done = 0;
    while (done < out.size()) {
        check_not_stopped(stop_fd, reading(name));
        const std::size_t wanted = std::min<std::size_t>(out.size() - done, kChunkBytes);
        const ssize_t count = ::pread(fd, out.data() + done, wanted, static_cast<off_t>(offset + done));
        if (count < 0 && errno != EINTR) {
            throw_errno(errno, reading(name));
        }
        if (count == 0) {
            break;
        }
        done += count > 0 ? static_cast<std::size_t>(count) : 0;
    }
    return done;
}

void write_fully(int fd, std::span<const std::byte> bytes, const std::string& name) {
    while (!bytes.empty()) {
        const ssize_t count = ::write(fd, bytes.data(), bytes.size());
        if (count < 0 && errno != EINTR) {
            throw_errno(errno, "keep " + name + " in memory",
                        {{ENOSPC, "memory is short: free some, or write it to a file first"}});
        }
        bytes = bytes.subspan(count > 0 ? static_cast<std::size_t>(count) : 0);
    }
}

UniqueFd anonymous_file(const std::string& name) {
    UniqueFd fd{::memfd_create("vmm-image", MFD_CLOEXEC)};
    if (!fd) {
        throw_errno(errno, "create an anonymous file for " + name);
    }
    return fd;
}

struct stat status_of(int fd, const std::string& name) {
    struct stat status = {};
    if (::fstat(fd, &status) != 0) {
        throw_errno(errno, "look at " + name);
    }
    return status;
}

void refuse_unfit_kinds(mode_t mode, const std::string& name) {
    if (S_ISDIR(mode)) {
        throw Error("cannot use " + name + ": it is a directory (name a file in it)");
    }
    if (S_ISCHR(mode)) {
        throw Error("cannot use " + name + ": it is a character device, which has no end (name a file)");
    }
}

/// Reads a pipe to its end into an anonymous file, and returns that file.
UniqueFd drain(int pipe, std::uint64_t max_bytes, int stop_fd, const std::string& name) {
    UniqueFd copy = anonymous_file(name);
    std::vector<std::byte> buffer(static_cast<std::size_t>(kChunkBytes));
    std::uint64_t total = 0;
    while (const std::size_t bytes = read_some(pipe, buffer, stop_fd, reading(name))) {
        if (bytes > max_bytes - total) {
            throw Error("cannot use " + name + ": it is a pipe that gives more than " + format_bytes(max_bytes) +
                        " (write it to a file first)");
        }
        total += bytes;
        write_fully(copy.get(), std::span{buffer}.first(bytes), name);
    }
    return copy;
}

std::uint64_t size_of(int fd, const std::string& name) {
    // The position of the end is the size, for a block device as for a regular file.
    const off_t end = ::lseek(fd, 0, SEEK_END);
    if (end < 0) {
        throw_errno(errno, "find the size of " + name);
    }
    return static_cast<std::uint64_t>(end);
}

/// The part of `range` that lies in the memory region of its first byte and is handled at once.
std::span<std::byte> first_piece(const GuestMemory& memory, GuestRange range) {
    for (const MemoryRegion& region : memory.regions()) {
        if (!region.range.contains({range.base, 1})) {
            continue;
        }
        const std::uint64_t offset = to_integer(range.base) - to_integer(region.range.base);
        const std::uint64_t length = std::min({range.size, region.range.size - offset, kChunkBytes});
        const auto bytes = memory.at({range.base, length});
        assert(bytes);
        return *bytes;
    }
    assert(false && "the range is RAM of the guest");
    return {};
}

GuestRange without_first(GuestRange range, std::uint64_t bytes) {
    return {GuestAddress{to_integer(range.base) + bytes}, range.size - bytes};
}

} // namespace

ImageFile::ImageFile(std::string path, std::uint64_t max_stream_bytes, int stop_fd)
    : name_(std::move(path)), stop_fd_(stop_fd) {
    // The file is checked before it is opened, because opening a device can have effects. It is checked again
    // afterwards, because the path may name another file by then.
    struct stat before = {};
    if (::stat(name_.c_str(), &before) == 0) {
        refuse_unfit_kinds(before.st_mode, name_);
    }
    fd_ = open_for_reading(name_, stop_fd, "open " + name_);
    const struct stat status = status_of(fd_.get(), name_);
    refuse_unfit_kinds(status.st_mode, name_);
    if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)) {
        fd_ = drain(fd_.get(), max_stream_bytes, stop_fd, name_);
    }
    size_ = size_of(fd_.get(), name_);
}

ImageFile::ImageFile(std::string name, std::shared_ptr<const std::vector<std::byte>> owner) noexcept
    : name_(std::move(name)), bytes_(std::move(owner)), size_(bytes_ ? bytes_->size() : 0) {}

ImageFile ImageFile::from_bytes(std::string name, std::span<const std::byte> bytes) {
    return {std::move(name), std::make_shared<const std::vector<std::byte>>(bytes.begin(), bytes.end())};
}

bool ImageFile::read_at(std::uint64_t offset, std::span<std::byte> out) const {
    if (offset > size_ || out.size() > size_ - offset) {
        return false;
    }
    if (!fd_) {
        if (!out.empty()) {
            std::memcpy(out.data(), bytes_->data() + offset, out.size());
        }
        return true;
    }
    return read_fully(fd_.get(), offset, out, stop_fd_, name_) == out.size();
}

void ImageFile::read_into(const GuestMemory& memory, GuestAddress target, std::uint64_t offset,
                          std::uint64_t length) const {
    GuestRange rest{target, length};
    while (rest.size != 0) {
        const std::span<std::byte> piece = first_piece(memory, rest);
        if (!read_at(offset, piece)) {
            throw Error("cannot load " + name_ + ": it became shorter while it was read (leave it alone until the " +
                        "guest runs)");
        }
        offset += piece.size();
        rest = without_first(rest, piece.size());
    }
}

void fill_with_zeros(const GuestMemory& memory, GuestRange range) {
    while (range.size != 0) {
        const std::span<std::byte> piece = first_piece(memory, range);
        std::memset(piece.data(), 0, piece.size());
        range = without_first(range, piece.size());
    }
}

} // namespace vmm::loader
