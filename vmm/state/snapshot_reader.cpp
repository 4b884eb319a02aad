#include "vmm/state/snapshot_reader.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <system_error>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/host/file_server.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/retry.hpp"
#include "vmm/refuse_nul.hpp"
#include "vmm/state/crc32c.hpp"
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
    UniqueFd fd = files::open_directory_at(AT_FDCWD, directory.c_str());
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

/// Opens a file of a snapshot. It does not wait if the file is a pipe, for example. Throws Error if there is no such
/// file, or if it is no regular file.
SnapshotFile open_file(int directory_fd, const std::filesystem::path& directory, const char* name) {
    SnapshotFile file{files::open_at(directory_fd, name, O_RDONLY | O_NONBLOCK | O_CLOEXEC), directory / name};
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

/// Reads the whole file. Throws Error if it has more than `most` bytes.
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
SnapshotState read_state(int directory_fd, const std::filesystem::path& directory, SnapshotBase& identity) {
    const SnapshotFile file = open_file(directory_fd, directory, snapshot_files::kState);
    const std::vector<std::byte> content = content_of(file, kMostStateBytes);
    identity.state_bytes = content.size();
    identity.state_crc32c = crc32c(content);
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

SnapshotReader::SnapshotReader(std::filesystem::path directory, unsigned most_bases)
    : directory_(std::move(directory)), fd_(open_directory(directory_)),
      state_(read_state(fd_.get(), directory_, identity_)), layout_(state_.machine.memory),
      config_(read_config(fd_.get(), directory_)),
      memory_(open_checked_memory(fd_.get(), directory_, layout_)), files_{{.fd = memory_.get(),
                                                                            .name =
                                                                                directory_ / snapshot_files::kMemory}} {
    if (state_.base) {
        open_base(most_bases);
    }
}

/// Opens the base. A base that has changed since is refused, whatever its content is now.
void SnapshotReader::open_base(unsigned most_bases) {
    const SnapshotBase& wanted = *state_.base;
    refuse_nul(wanted.path, "the path of the snapshot that " + directory_.string() + " builds on");
    const std::filesystem::path path = (directory_ / wanted.path).lexically_normal();
    const std::string tried =
        format("cannot use the snapshot {}: it builds on the snapshot {}, ", directory_.string(), path.string());
    if (most_bases == 0) {
        throw Error(tried + format("which is one of a chain of more than {} (take a snapshot that builds on none)",
                                   kMostBases));
    }
    try {
        base_.reset(new SnapshotReader(path, most_bases - 1));
    } catch (const Error& error) {
        throw Error(tried + "which is not there as it was: " + error.what());
    }
    if (base_->identity_ != SnapshotBase{{}, wanted.state_bytes, wanted.state_crc32c}) {
        throw Error(tried + "and another one is there now (put the right one there)");
    }
    const MemorySource there = base_->memory();
    MemoryIndex& index = *state_.memory;
    for (std::size_t i = 0; i < index.size(); ++i) {
        if (index[i].file == 0) {
            continue;
        }
        if (i >= there.index.size() || there.layout.chunk(i) != layout_.chunk(i) || there.index[i].is_hole ||
            there.index[i].crc32c != index[i].crc32c) {
            throw Error(tried + format("which has other content for guest memory {} (take another snapshot)",
                                       to_string(layout_.chunk(i).range)));
        }
        index[i].file = static_cast<std::uint8_t>(there.index[i].file + 1);
    }
    files_.insert(files_.end(), there.files.begin(), there.files.end());
}

SnapshotBase SnapshotReader::as_base(const std::filesystem::path& from) const {
    std::filesystem::path wanted = from;
    while (!wanted.has_filename() && wanted.has_relative_path()) { // "/x/y/" becomes "/x/y"
        wanted = wanted.parent_path();
    }
    const std::filesystem::path here = files::canonical(directory_.c_str());
    const std::filesystem::path parent =
        files::canonical(wanted.has_parent_path() ? wanted.parent_path().c_str() : ".");
    const std::filesystem::path there = parent / wanted.filename();
    if (here.empty() || parent.empty()) {
        const int error_number = errno;
        throw Error(
            format("cannot build on the snapshot {}: where it is cannot be found out: {} (name it by a path that "
                   "begins with /)",
                   directory_.string(), errno_reason(error_number)));
    }
    SnapshotBase base = identity_;
    base.path = here.lexically_relative(there).string();
    return base;
}

UniqueFd SnapshotReader::open_memory(int flags) const {
    UniqueFd file = files::open_at(fd_.get(), snapshot_files::kMemory, O_RDONLY | O_NONBLOCK | O_CLOEXEC | flags);
    if (!file && errno != EINVAL) {
        const int error_number = errno;
        throw_read_error(error_number, "open " + (directory_ / snapshot_files::kMemory).string());
    }
    return file;
}

} // namespace vmm
