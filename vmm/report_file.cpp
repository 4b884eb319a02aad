#include "vmm/report_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <optional>
#include <utility>

#include "kvm/error.hpp"

namespace vmm {

namespace {

/// False with errno set where not everything was written.
bool write_all(int fd, std::string_view text) {
    while (!text.empty()) {
        const ssize_t written = ::write(fd, text.data(), text.size());
        if (written < 0 && errno != EINTR) {
            return false;
        }
        text.remove_prefix(written > 0 ? static_cast<std::size_t>(written) : 0);
    }
    return true;
}

/// The descriptor of ours that `path` is a name of. Opening such a name anew would begin at the start of a file that we
/// are writing to already.
std::optional<int> named_descriptor(std::string_view path) {
    if (path == "/dev/stdout") {
        return STDOUT_FILENO;
    }
    if (path == "/dev/stderr") {
        return STDERR_FILENO;
    }
    for (const std::string_view folder : {"/dev/fd/", "/proc/self/fd/"}) {
        int fd = -1;
        if (path.starts_with(folder)) {
            const std::string_view number = path.substr(folder.size());
            const char* const end = number.data() + number.size();
            if (const auto [rest, error] = std::from_chars(number.data(), end, fd);
                error == std::errc{} && rest == end) {
                return fd;
            }
        }
    }
    return std::nullopt;
}

/// The file that `path` leads to, so that a link still is one afterwards. It need not be there yet.
std::string follow_links(std::string path) {
    constexpr int kMostLinks = 40; // as the kernel's own limit (path_resolution(7))
    std::error_code failed;
    for (int i = 0; i < kMostLinks; ++i) {
        const auto target = std::filesystem::read_symlink(path, failed);
        if (failed) {
            break;
        }
        path = (std::filesystem::path(path).parent_path() / target).string();
    }
    return path;
}

std::string directory_of(const std::string& path) {
    const auto directory = std::filesystem::path(path).parent_path();
    return directory.empty() ? "." : directory.string();
}

} // namespace

ReportFile::ReportFile(std::string path, std::string what) : path_(std::move(path)), what_(std::move(what)) {
    const std::string tried = this->tried();
    if (const auto fd = named_descriptor(path_)) {
        direct_.reset(::fcntl(*fd, F_DUPFD_CLOEXEC, 0));
        if (!direct_) {
            throw_errno(errno, tried);
        }
        return;
    }
    path_ = follow_links(path_);
    struct stat facts {};
    const bool exists = ::stat(path_.c_str(), &facts) == 0;
    if (!exists && errno != ENOENT) {
        throw_errno(errno, tried);
    }
    if (exists) {
        // O_NONBLOCK: a pipe nobody reads is found now, and does not hold us up.
        direct_.reset(::open(path_.c_str(), O_WRONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
        if (!direct_) {
            const int error_number = errno;
            throw_errno(error_number, tried, error_number == ENXIO ? "it is a pipe that nobody reads yet" : "");
        }
        if (!S_ISREG(facts.st_mode)) {
            ::fcntl(direct_.get(), F_SETFL, 0); // From here on a slow reader is waited for.
            return;
        }
    }
    overwritable_ = true;
    if (!prepare_replacement() && !exists) {
        // Some file systems know no files without names (EOPNOTSUPP): there it is enough that one could be made.
        const int error_number = errno;
        if (error_number != EOPNOTSUPP || ::access(directory_of(path_).c_str(), W_OK | X_OK) != 0) {
            throw_errno(error_number, tried, "its directory must exist and be writable");
        }
    }
}

bool ReportFile::prepare_replacement() {
    constexpr off_t kRoom = 64 * 1024; // more than a report of 254 vCPUs takes
    replacement_.reset(::open(directory_of(path_).c_str(), O_TMPFILE | O_WRONLY | O_CLOEXEC, 0666));
    if (!replacement_) {
        return false;
    }
    // Found now, and not when the guest has run: no room. Some file systems cannot promise any.
    if (const int error_number = ::posix_fallocate(replacement_.get(), 0, kRoom);
        error_number == ENOSPC || error_number == EDQUOT) {
        errno = error_number;
        replacement_.reset();
        return false;
    }
    return true;
}

bool ReportFile::replace(std::string_view text) {
    if (!replacement_ || ::ftruncate(replacement_.get(), 0) != 0 || !write_all(replacement_.get(), text)) {
        return false;
    }
    // A file without a name gets one beside the old file, and then the old one's.
    const std::string from = "/proc/self/fd/" + std::to_string(replacement_.get());
    const std::string name = directory_of(path_) + "/.vmm-new." + std::to_string(::getpid());
    ::unlink(name.c_str());
    if (::linkat(AT_FDCWD, from.c_str(), AT_FDCWD, name.c_str(), AT_SYMLINK_FOLLOW) != 0) {
        return false;
    }
    if (::rename(name.c_str(), path_.c_str()) != 0) {
        const int error_number = errno;
        ::unlink(name.c_str());
        errno = error_number;
        return false;
    }
    return true;
}

void ReportFile::write(std::string_view text) {
    if (replace(text)) {
        return;
    }
    if (!direct_) {
        direct_.reset(::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOCTTY, 0666));
    }
    if (!direct_ || (overwritable_ && ::ftruncate(direct_.get(), 0) != 0) || !write_all(direct_.get(), text)) {
        throw_errno(errno, tried());
    }
}

} // namespace vmm
