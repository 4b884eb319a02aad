#include "vmm/state/snapshot_reader.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/retry.hpp"
#include "vmm/refuse_nul.hpp"
#include "vmm/state/snapshot_files.hpp"
#include "vmm/state/state_file.hpp"

namespace vmm {

namespace {

constexpr std::array kReadAdvice{
    ErrnoAdvice{ENOENT, "name the directory of a snapshot that is whole"},
    ErrnoAdvice{ENOTDIR, "name the directory of a snapshot"},
    ErrnoAdvice{EACCES, "become the user who made it, or root"},
    ErrnoAdvice{EIO, "the disk fails: take another snapshot"},
};

[[noreturn]] void throw_read_error(int error_number, const std::string& tried) {
    throw_errno(error_number, tried, kReadAdvice);
}

UniqueFd open_directory(const std::filesystem::path& directory) {
    refuse_nul(directory.string(), "the directory of the snapshot");
    UniqueFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!fd) {
        const int error_number = errno;
        throw_read_error(error_number, "open the snapshot " + directory.string());
    }
    return fd;
}

/// A file of a snapshot.
struct SnapshotFile {
    UniqueFd fd;
    std::string path;
    std::uint64_t bytes = 0;
};

/// Throws Error: there is no such file, or it is no regular file. A pipe, say, is not waited for.
SnapshotFile open_file(int directory_fd, const std::filesystem::path& directory, const char* name) {
    SnapshotFile file{UniqueFd(::openat(directory_fd, name, O_RDONLY | O_NONBLOCK | O_CLOEXEC)), directory / name};
    struct stat facts {};
    if (!file.fd || ::fstat(file.fd.get(), &facts) != 0) {
        const int error_number = errno;
        throw_read_error(error_number, "open " + file.path);
    }
    if (!S_ISREG(facts.st_mode)) {
        throw Error("cannot read " + file.path + ": it is no regular file (name the directory of a snapshot)");
    }
    file.bytes = static_cast<std::uint64_t>(facts.st_size);
    return file;
}

/// All of it. Throws Error: it has more than `most` bytes.
std::vector<std::byte> content_of(const SnapshotFile& file, std::size_t most) {
    if (file.bytes > most) {
        throw Error(format("cannot read {}: it has {} bytes, and can have {} (name the directory of a snapshot)",
                           file.path, file.bytes, most));
    }
    std::vector<std::byte> content(static_cast<std::size_t>(file.bytes));
    std::size_t done = 0;
    while (done < content.size()) {
        const ssize_t got =
            uninterrupted([&] { return ::read(file.fd.get(), content.data() + done, content.size() - done); });
        if (got < 0) {
            const int error_number = errno;
            throw_read_error(error_number, "read " + file.path);
        }
        if (got == 0) {
            break;
        }
        done += static_cast<std::size_t>(got);
    }
    content.resize(done);
    return content;
}

/// Throws Error, with the name of the file.
SnapshotState read_state(int directory_fd, const std::filesystem::path& directory) {
    const SnapshotFile file = open_file(directory_fd, directory, snapshot_files::kState);
    const std::vector<std::byte> content = content_of(file, kMostStateBytes);
    try {
        SnapshotState state = decode_state(content);
        if (!state.memory) {
            throw Error("its section 'memory' is missing (take a snapshot that is whole)");
        }
        return state;
    } catch (const Error& error) {
        throw Error("cannot use the snapshot " + directory.string() + ": " + error.what());
    }
}

std::string read_config(int directory_fd, const std::filesystem::path& directory) {
    const SnapshotFile file = open_file(directory_fd, directory, snapshot_files::kConfig);
    std::string text;
    for (const std::byte byte : content_of(file, snapshot_files::kMostConfigBytes)) {
        text += static_cast<char>(byte);
    }
    return text;
}

UniqueFd open_checked_memory(int directory_fd, const std::filesystem::path& directory, const MemoryLayout& layout) {
    SnapshotFile file = open_file(directory_fd, directory, snapshot_files::kMemory);
    if (file.bytes != layout.file_bytes()) {
        throw Error(format(
            "cannot use {}: it has {} bytes, and its state says {}: it is {} (take a snapshot that is whole)",
            file.path, file.bytes, layout.file_bytes(), file.bytes < layout.file_bytes() ? "truncated" : "another's"));
    }
    return std::move(file.fd);
}

} // namespace

SnapshotReader::SnapshotReader(const std::filesystem::path& directory)
    : directory_(directory), fd_(open_directory(directory_)), state_(read_state(fd_.get(), directory_)),
      layout_(state_.machine.memory), config_(read_config(fd_.get(), directory_)),
      memory_(open_checked_memory(fd_.get(), directory_, layout_)), files_{{.fd = memory_.get(),
                                                                            .name = directory_ /
                                                                                    snapshot_files::kMemory}} {}

UniqueFd SnapshotReader::open_memory(int flags) const {
    UniqueFd file(::openat(fd_.get(), snapshot_files::kMemory, O_RDONLY | O_NONBLOCK | O_CLOEXEC | flags));
    if (!file && errno != EINVAL) {
        const int error_number = errno;
        throw_read_error(error_number, "open " + (directory_ / snapshot_files::kMemory).string());
    }
    return file;
}

} // namespace vmm
