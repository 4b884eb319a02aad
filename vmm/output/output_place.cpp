#include "vmm/output/output_place.hpp"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <deque>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/file_server.hpp"

namespace vmm {

namespace {

constexpr int kPathFlags = O_PATH | O_NOFOLLOW | O_CLOEXEC;

/// The parts of `path` between its slashes. A slash at the end requires a directory, as "." does.
std::deque<std::string> parts_of(const std::string& path) {
    std::deque<std::string> parts;
    std::size_t start = 0;
    while (start < path.size()) {
        const std::size_t end = std::min(path.find('/', start), path.size());
        if (end > start) {
            parts.push_back(path.substr(start, end - start));
        }
        start = end + 1;
    }
    if (parts.empty() || path.back() == '/') {
        parts.emplace_back(".");
    }
    return parts;
}

UniqueFd open_start(const std::string& path) {
    return UniqueFd(::open(path.starts_with('/') ? "/" : ".", O_PATH | O_DIRECTORY | O_CLOEXEC));
}

bool is_on_procfs(int fd) {
    struct statfs facts {};
    return ::fstatfs(fd, &facts) == 0 && facts.f_type == PROC_SUPER_MAGIC;
}

/// Whether the owner is this user or root. In a user namespace without root, root's files have the owner of "/".
bool is_trusted(uid_t owner) {
    struct stat root {};
    return owner == ::geteuid() || owner == 0 || (::stat("/", &root) == 0 && owner == root.st_uid);
}

/// Returns the target of the link, which is opened with O_PATH. If it cannot be read, the result is empty and errno is
/// set.
std::string target_of(int link) {
    std::array<char, PATH_MAX> target{};
    const ssize_t size = ::readlinkat(link, "", target.data(), target.size());
    return size > 0 ? std::string(target.data(), static_cast<std::size_t>(size)) : std::string();
}

} // namespace

OutputPlace::OutputPlace(const std::string& path, const std::string& tried) {
    if (path.empty()) {
        throw_errno(ENOENT, tried);
    }
    if (!find_without_links(path)) {
        walk(path, tried);
    }
}

bool OutputPlace::find_without_links(const std::string& path) {
    const std::size_t slash = path.find_last_of('/');
    const std::string folder = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
    const std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
    if (name.empty() || name == "." || name == "..") {
        return false;
    }
    open_how how{};
    how.flags = O_PATH | O_DIRECTORY | O_CLOEXEC;
    how.resolve = RESOLVE_NO_SYMLINKS;
    UniqueFd directory(static_cast<int>(::syscall(SYS_openat2, AT_FDCWD, folder.c_str(), &how, sizeof(how))));
    if (!directory) {
        return false; // It is a link, the kernel is older, or there was an error. Walking the path finds out.
    }
    struct stat facts {};
    if (::fstatat(directory.get(), name.c_str(), &facts, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(facts.st_mode)) {
        return false;
    }
    directory_ = std::move(directory);
    name_ = name;
    return true;
}

void OutputPlace::walk(const std::string& path, const std::string& tried) {
    constexpr int kMostLinks = 40; // the kernel's own limit (path_resolution(7))
    std::deque<std::string> parts = parts_of(path);
    directory_ = open_start(path);
    for (int links = 0; directory_;) {
        const std::string part = std::move(parts.front());
        parts.pop_front();
        const bool last = parts.empty();
        const UniqueFd entry(::openat(directory_.get(), part.c_str(), kPathFlags));
        struct stat facts {};
        if (!entry || ::fstat(entry.get(), &facts) != 0) {
            if (last && errno == ENOENT) {
                name_ = part;
                return;
            }
            throw_errno(errno, tried);
        }
        if (S_ISLNK(facts.st_mode)) {
            if (++links > kMostLinks) {
                throw_errno(ELOOP, tried);
            }
            named_itself_ = named_itself_ && !last;
            if (is_on_procfs(entry.get())) {
                if (last) {
                    by_descriptor_ = true;
                    name_ = part;
                    return;
                }
                directory_.reset(::openat(directory_.get(), part.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
                continue;
            }
            const std::string target = target_of(entry.get());
            if (!is_trusted(facts.st_uid)) {
                throw ForeignLink(
                    "cannot " + tried + ": the link '" + part + "' in that path belongs to another user (uid " +
                    std::to_string(facts.st_uid) +
                    "), who may lead it anywhere at any time (if it leads where you want, name that itself: " + target +
                    ")");
            }
            if (target.empty()) {
                throw_errno(errno, tried);
            }
            if (target.starts_with('/')) {
                directory_ = open_start(target);
            }
            std::deque<std::string> more = parts_of(target);
            parts.insert(parts.begin(), more.begin(), more.end());
            continue;
        }
        if (last) {
            name_ = part;
            return;
        }
        // O_NOFOLLOW alone is not enough, because a file system that is mounted there must be entered.
        directory_.reset(::openat(directory_.get(), part.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    }
    throw_errno(errno, tried);
}

UniqueFd OutputPlace::open(int flags, mode_t mode) const noexcept {
    return files::open_at(directory_.get(), name_.c_str(),
                          flags | O_CLOEXEC | O_NOCTTY | (by_descriptor_ ? 0 : O_NOFOLLOW), mode);
}

void check_not_locked(int fd, const std::string& tried) {
    struct stat facts {};
    if (::fstat(fd, &facts) != 0 || !(S_ISREG(facts.st_mode) || S_ISBLK(facts.st_mode))) {
        return;
    }
    struct flock range {};
    range.l_type = F_WRLCK;
    range.l_whence = SEEK_SET;
    // If a file system has no locks, nobody can hold one.
    if (::fcntl(fd, F_OFD_GETLK, &range) == 0 && range.l_type != F_UNLCK) {
        throw Error("cannot " + tried + ": it is locked by " +
                    (range.l_pid > 0 ? "process " + std::to_string(range.l_pid)
                                     : std::string("another program, or by this one, as the disk of a guest")) +
                    " (name another file)");
    }
}

void throw_cannot_open(int error_number, const std::string& tried) {
    throw_errno(error_number, tried,
                {{ENXIO, "it is a pipe that nobody reads yet, or a socket"},
                 {ENOENT, "its directory must exist"},
                 {EACCES, "the file, or else its directory, must be writable for this user"}});
}

} // namespace vmm
