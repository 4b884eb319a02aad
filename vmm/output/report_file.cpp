#include "vmm/output/report_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <optional>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/file_server.hpp"

namespace vmm {

/// The descriptor of this process that `path` names. Opening such a name again would begin at the start of a file to
/// which this process is writing already.
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

namespace {

/// Whether the file has attributes, such as access control lists, that a new file would not have. A new file would have
/// SELinux's label.
bool has_attributes(int fd) {
    std::string names(4096, '\0');
    const ssize_t size = ::flistxattr(fd, names.data(), names.size());
    if (size < 0) {
        return errno == ERANGE;
    }
    names.resize(static_cast<std::size_t>(size));
    std::size_t start = 0;
    while (start < names.size()) {
        const std::string name(names.c_str() + start);
        if (name != "security.selinux") {
            return true;
        }
        start += name.size() + 1;
    }
    return false;
}

/// Whether a new file could not replace this one.
bool is_more_than_its_content(int fd, const struct stat& facts) {
    return facts.st_nlink != 1 || has_attributes(fd);
}

} // namespace

ReportFile::ReportFile(std::string path, std::string what) : path_(std::move(path)), what_(std::move(what)) {
    if (const auto fd = named_descriptor(path_)) {
        direct_.reset(::fcntl(*fd, F_DUPFD_CLOEXEC, 0));
        if (!direct_) {
            throw_errno(errno, tried(), {{EBADF, "no such descriptor is open"}});
        }
        return;
    }
    examine();
}

void ReportFile::examine() {
    place_.emplace(path_, tried());
    struct stat facts {};
    // With O_NONBLOCK, opening a pipe that nobody reads fails now and does not wait.
    direct_ = place_->open(O_WRONLY | O_NONBLOCK);
    exists_ = static_cast<bool>(direct_);
    if (!exists_ && errno != ENOENT) {
        throw_cannot_open(errno, tried());
    }
    if (exists_) {
        if (::fstat(direct_.get(), &facts) != 0) {
            throw_errno(errno, tried());
        }
        check_not_locked(direct_.get(), tried());
        if (!S_ISREG(facts.st_mode)) {
            return;
        }
    }
    overwritable_ = true;
    if (exists_ &&
        (!place_->has_name() || !place_->is_named_itself() || is_more_than_its_content(direct_.get(), facts))) {
        return;
    }
    if (!prepare_replacement(exists_ ? &facts : nullptr) && !exists_) {
        // Some file systems have no files without names (EOPNOTSUPP). There it is enough that a file could be made.
        const int error_number = errno;
        if (error_number != EOPNOTSUPP || ::faccessat(place_->directory(), ".", W_OK | X_OK, AT_EACCESS) != 0) {
            throw_errno(error_number, tried(),
                        {{ENOENT, "its directory must exist and be writable"},
                         {EACCES, "its directory must exist and be writable"}});
        }
    }
}

bool ReportFile::prepare_replacement(const struct stat* existing) {
    constexpr off_t kRoom = 64 * 1024; // more than a report of 254 vCPUs takes
    replacement_.reset(::openat(place_->directory(), ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0666));
    if (!replacement_) {
        return false;
    }
    struct stat made {};
    const auto give_up = [this](int error_number) {
        replacement_.reset();
        errno = error_number;
        return false;
    };
    if (existing != nullptr) {
        constexpr mode_t kMode = 07777;
        if (::fstat(replacement_.get(), &made) != 0 ||
            ((made.st_uid != existing->st_uid || made.st_gid != existing->st_gid) &&
             ::fchown(replacement_.get(), existing->st_uid, existing->st_gid) != 0) ||
            ::fchmod(replacement_.get(), existing->st_mode & kMode) != 0) {
            return give_up(errno);
        }
    }
    // This finds a lack of room now, and not after the guest has run. Some file systems cannot reserve room.
    if (const int error_number = ::posix_fallocate(replacement_.get(), 0, kRoom);
        error_number == ENOSPC || error_number == EDQUOT) {
        return give_up(error_number);
    }
    return true;
}

bool ReportFile::replace(std::string_view text) {
    if (!replacement_ || ::ftruncate(replacement_.get(), 0) != 0 ||
        write_patiently(NonblockingOutput(replacement_.get()), text).bytes != text.size()) {
        return false;
    }
    const int directory = place_->directory();
    const std::string from = "/proc/self/fd/" + std::to_string(replacement_.get());
    const auto link_as = [&](const std::string& name) {
        return ::linkat(AT_FDCWD, from.c_str(), directory, name.c_str(), AT_SYMLINK_FOLLOW) == 0;
    };
    if (!exists_ && link_as(place_->name())) {
        return true;
    }
    if (!place_->is_named_itself()) {
        return false;
    }
    // A file without a name first gets a name beside the old file, and then the old file's name.
    const std::string beside = ".vmm-new." + std::to_string(::getpid());
    ::unlinkat(directory, beside.c_str(), 0);
    if (!link_as(beside)) {
        return false;
    }
    if (::renameat(directory, beside.c_str(), directory, place_->name().c_str()) != 0) {
        ::unlinkat(directory, beside.c_str(), 0);
        return false;
    }
    return true;
}

void ReportFile::write(std::string_view text, const WritePatience& patience) {
    if (FileServer* const server = file_server(); server != nullptr && overwritable_) {
        std::string problem; // only the other process may make a file there
        if (server->write_output(path_.c_str(), text, problem)) {
            return;
        }
        if (!problem.empty()) {
            throw Error(problem);
        }
        const int error_number = errno;
        throw_errno(error_number, tried());
    }
    if (place_) {
        try { // the file may have changed since construction
            *this = ReportFile(path_, what_);
        } catch (const Error&) { // the facts from construction are used
        }
    }
    if (replace(text)) {
        return;
    }
    if (!direct_ && place_) {
        direct_ = place_->open(O_WRONLY | O_CREAT);
        if (!direct_) {
            throw_cannot_open(errno, tried());
        }
    }
    check_not_locked(direct_.get(), tried());
    if (overwritable_ && ::ftruncate(direct_.get(), 0) != 0) {
        throw_errno(errno, tried());
    }
    const Written written = write_patiently(NonblockingOutput(direct_.get()), text, patience);
    if (written.bytes != text.size()) {
        throw Error("cannot " + tried() + ": " + describe_failure(written, patience));
    }
}

} // namespace vmm
