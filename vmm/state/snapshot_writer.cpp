#include "vmm/state/snapshot_writer.hpp"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cassert>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <initializer_list>

#include "kvm/host/error.hpp"
#include "kvm/host/file_server.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/retry.hpp"
#include "vmm/refuse_nul.hpp"
#include "vmm/state/snapshot_files.hpp"

namespace vmm {

namespace {

constexpr mode_t kFolderMode = 0700;
constexpr mode_t kFileMode = 0600;

constexpr std::array kWriteAdvice{
    ErrnoAdvice{ENOSPC, "free some space, or name a directory of another file system"},
    ErrnoAdvice{EDQUOT, "free some space, or name a directory of another file system"},
    ErrnoAdvice{EIO, "the disk fails: name a directory of another file system"},
    ErrnoAdvice{EROFS, "name a directory of a file system that can be written"},
    ErrnoAdvice{EACCES, "name a directory whose parent this user may write"},
    ErrnoAdvice{EPERM, "name a directory whose parent this user may write"},
    ErrnoAdvice{ENOENT, "make the parent directory first"},
    ErrnoAdvice{ENOTDIR, "make the parent directory first"},
    ErrnoAdvice{EFBIG, "raise the limit of file sizes (ulimit -f), or name a directory of another file system"},
};

[[noreturn]] void throw_write_error(int error_number, const std::string& tried) {
    throw_errno(error_number, tried, kWriteAdvice);
}

[[noreturn]] void refuse_existing(const std::filesystem::path& directory) {
    throw Error(
        format("cannot make the snapshot {}: there is a file or a directory of this name (name another, or remove "
               "it)",
               directory.string()));
}

/// Returns `directory` without a slash at its end: "/x/y/" becomes "/x/y". Throws Error.
std::filesystem::path checked(const std::filesystem::path& directory) {
    refuse_nul(directory.string(), "the directory of the snapshot");
    std::filesystem::path plain = directory;
    while (!plain.has_filename() && plain.has_relative_path()) {
        plain = plain.parent_path();
    }
    const std::string name = plain.filename();
    if (name.empty() || name == "." || name == "..") {
        throw Error(
            format("cannot make the snapshot '{}': it has no name of its own (name a directory that is not there "
                   "yet)",
                   directory.string()));
    }
    return plain;
}

/// Throws Error.
UniqueFd open_parent(const std::filesystem::path& directory) {
    const std::filesystem::path parent = directory.has_parent_path() ? directory.parent_path() : ".";
    UniqueFd fd = files::open_directory_at(AT_FDCWD, parent.c_str());
    if (!fd) {
        const int error_number = errno;
        throw_write_error(error_number, format("open {}, in which the snapshot {} is to be", parent.string(),
                                               directory.filename().string()));
    }
    return fd;
}

/// Makes a directory with a free name, and returns the name. Throws Error.
std::string make_partial(int parent, const std::filesystem::path& directory) {
    // Two writers in one parent directory differ by their process ids, or by this count.
    static std::atomic<unsigned> count = 0;
    for (;;) {
        const std::string name =
            format(".{}.partial-{}-{}", directory.filename().string(), ::getpid(), count.fetch_add(1));
        if (files::make_directory_at(parent, name.c_str(), kFolderMode)) {
            return name;
        }
        const int error_number = errno;
        if (error_number != EEXIST) {
            throw_write_error(error_number, "make the snapshot " + directory.string());
        }
    }
}

/// Throws Error if the name is taken.
void check_is_free(int parent, const std::filesystem::path& directory) {
    const std::string name = directory.filename();
    struct stat ignored {};
    if (::fstatat(parent, name.c_str(), &ignored, AT_SYMLINK_NOFOLLOW) == 0) {
        refuse_existing(directory);
    }
}

} // namespace

void SnapshotWriter::check_place(const std::filesystem::path& directory) {
    const std::filesystem::path plain = checked(directory);
    const UniqueFd parent = open_parent(plain);
    check_is_free(parent.get(), plain);
    if (::faccessat(parent.get(), ".", W_OK | X_OK, AT_EACCESS) != 0) {
        const int error_number = errno;
        throw_write_error(error_number, "make the snapshot " + plain.string());
    }
}

SnapshotWriter::SnapshotWriter(const std::filesystem::path& directory)
    : directory_(checked(directory)), parent_(open_parent(directory_)) {
    check_is_free(parent_.get(), directory_);
    name_ = make_partial(parent_.get(), directory_);
    try {
        partial_ = files::open_directory_at(parent_.get(), name_.c_str(), O_NOFOLLOW);
        if (!partial_) {
            const int error_number = errno;
            throw_write_error(error_number, "open the snapshot " + directory_.string());
        }
        memory_ = create(snapshot_files::kMemory);
    } catch (...) {
        remove();
        throw;
    }
}

SnapshotWriter::~SnapshotWriter() {
    if (!name_.empty()) {
        remove();
    }
}

void SnapshotWriter::remove() noexcept {
    for (const char* name : {snapshot_files::kMemory, snapshot_files::kState, snapshot_files::kConfig}) {
        files::remove_at(partial_.get(), name);
    }
    files::remove_at(parent_.get(), name_.c_str(), AT_REMOVEDIR);
}

std::string SnapshotWriter::path_of(const char* name) const {
    return directory_ / name;
}

UniqueFd SnapshotWriter::create(const char* name) const {
    UniqueFd file = files::open_at(partial_.get(), name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, kFileMode);
    if (!file) {
        const int error_number = errno;
        throw_write_error(error_number, "make " + path_of(name));
    }
    return file;
}

UniqueFd SnapshotWriter::open_memory(int flags) const {
    UniqueFd file = files::open_at(partial_.get(), snapshot_files::kMemory, O_RDWR | O_NOFOLLOW | O_CLOEXEC | flags);
    if (!file && errno != EINVAL) {
        const int error_number = errno;
        throw_write_error(error_number, "open " + path_of(snapshot_files::kMemory));
    }
    return file;
}

void SnapshotWriter::write_file(const char* name, std::span<const std::byte> content) const {
    const UniqueFd file = create(name);
    while (!content.empty()) {
        const ssize_t written = uninterrupted([&] { return ::write(file.get(), content.data(), content.size()); });
        if (written < 0) {
            const int error_number = errno;
            throw_write_error(error_number, "write " + path_of(name));
        }
        content = content.subspan(static_cast<std::size_t>(written));
    }
    sync(file.get(), path_of(name));
}

void SnapshotWriter::sync(int fd, const std::string& path) {
    if (::fsync(fd) != 0) {
        const int error_number = errno;
        throw_write_error(error_number, "write " + path + " to the disk");
    }
}

void SnapshotWriter::sync_directory(int fd) const {
    if (!files::sync_directory(fd)) {
        const int error_number = errno;
        throw_write_error(error_number, "write " + directory_.string() + " to the disk");
    }
}

void SnapshotWriter::commit(std::span<const std::byte> state, std::string_view config) {
    assert(!name_.empty());
    write_file(snapshot_files::kState, state);
    write_file(snapshot_files::kConfig, std::as_bytes(std::span(config)));
    sync(memory_.get(), path_of(snapshot_files::kMemory));
    sync_directory(partial_.get());
    const std::string name = directory_.filename();
    if (!files::rename_at(parent_.get(), name_.c_str(), name.c_str(), RENAME_NOREPLACE)) {
        const int error_number = errno;
        if (error_number == EEXIST) {
            refuse_existing(directory_);
        }
        if (error_number != EINVAL) {
            throw_write_error(error_number, "give the snapshot its name, " + directory_.string());
        }
        // The file system cannot rename in this way (NFS, for example). The other way never replaces a directory that
        // is not empty.
        if (!files::rename_at(parent_.get(), name_.c_str(), name.c_str())) {
            const int second_error = errno;
            if (second_error == EEXIST || second_error == ENOTEMPTY || second_error == ENOTDIR) {
                refuse_existing(directory_);
            }
            throw_write_error(second_error, "give the snapshot its name, " + directory_.string());
        }
    }
    name_ = name;
    sync_directory(parent_.get());
    name_.clear();
}

} // namespace vmm
