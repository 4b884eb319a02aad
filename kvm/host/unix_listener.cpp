#include "kvm/host/unix_listener.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/file_server.hpp"

namespace vmm {

namespace {

/// The limit of waiting for another process that makes its socket in the same directory.
constexpr int kMostLockAttempts = 100;
constexpr timespec kLockPause{0, 10'000'000};

sockaddr_un address_of(const std::string& path) noexcept {
    sockaddr_un address{};
    static_assert(sizeof(address.sun_path) == UnixListener::kLongestPath + 1);
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof(address.sun_path) - 1);
    return address;
}

/// Keeps other processes from making such a socket in the same directory meanwhile, if the file system allows it.
class DirectoryLock {
  public:
    explicit DirectoryLock(const std::string& file) {
        const std::size_t slash = file.rfind('/');
        const std::string directory = slash == std::string::npos ? "." : slash == 0 ? "/" : file.substr(0, slash);
        fd_ = UniqueFd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        for (int attempt = 0; fd_ && ::flock(fd_.get(), LOCK_EX | LOCK_NB) != 0; ++attempt) {
            if ((errno != EWOULDBLOCK && errno != EINTR) || attempt == kMostLockAttempts) {
                fd_.reset();
            } else {
                ::nanosleep(&kLockPause, nullptr);
            }
        }
    }

  private:
    UniqueFd fd_; ///< closing it releases the lock
};

/// Checks that the file at `path` is a socket that its process left behind, so that it may be removed. Throws Error if
/// not.
void check_is_stale(const std::string& path, int type, const std::string& trying) {
    const std::string tried = "cannot " + trying;
    struct stat file {};
    if (::lstat(path.c_str(), &file) != 0) {
        if (errno == ENOENT) {
            return; // The file went away just now.
        }
        throw_errno(errno, trying);
    }
    if (!S_ISSOCK(file.st_mode)) {
        throw Error(tried +
                    ": there is a file of that name that is no socket (take another path, or move the file away)");
    }
    const UniqueFd probe = make_unix_socket(type);
    if (!probe) {
        throw_errno(errno, trying, "raise the limit on open files: `ulimit -n`");
    }
    const int error = connect_unix_socket(probe.get(), path);
    if (error == 0 || error == EAGAIN || error == EINPROGRESS) {
        throw Error(tried + ": another process uses it (take another path)");
    }
    if (error != ECONNREFUSED && error != ENOENT) { // EPROTOTYPE: a socket of another type; EACCES: another user's.
        throw_errno(
            error, trying,
            "there is a socket already, which cannot be told to be left behind: take another path, or delete it");
    }
    if (error == ECONNREFUSED && file.st_uid != ::geteuid()) {
        throw Error(tried + ": a process of another user's left a socket there (have user " +
                    std::to_string(file.st_uid) + " delete it, or take another path)");
    }
}

} // namespace

std::optional<UnixPeer> peer_of(int socket) noexcept {
    ucred credentials{};
    socklen_t size = sizeof(credentials);
    if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) {
        return std::nullopt;
    }
    return UnixPeer{credentials.uid, credentials.pid};
}

UniqueFd make_unix_socket(int type) noexcept {
    return UniqueFd(::socket(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
}

int connect_unix_socket(int fd, const std::string& path) noexcept {
    const sockaddr_un address = address_of(path);
    // The socket API takes every kind of address as a sockaddr; the size says which kind it is.
    return ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 ? 0 : errno;
}

UnixListener::UnixListener(std::string path, int type, std::string what,
                           const std::function<void(const std::string&)>& warn)
    : path_(std::move(path)) {
    const std::string trying = "make " + std::move(what) + " " + path_;
    if (path_.empty() || path_.size() > kLongestPath) {
        throw Error("cannot " + trying + ": the path must have 1 to " + std::to_string(kLongestPath) + " bytes");
    }
    const DirectoryLock lock(path_);
    UniqueFd fd = make_unix_socket(type);
    if (!fd) {
        throw_errno(errno, trying, "raise the limit on open files: `ulimit -n`");
    }
    const sockaddr_un address = address_of(path_);
    const auto bind_it = [&] {
        return ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
    };
    bool bound = bind_it();
    if (!bound && errno == EADDRINUSE) {
        check_is_stale(path_, type, trying);
        if (::unlink(path_.c_str()) != 0 && errno != ENOENT) {
            throw_errno(errno, "delete the unix socket " + path_ + ", which a process that ended left behind");
        }
        bound = bind_it();
        if (bound && warn) {
            warn("the unix socket " + path_ + " was left behind by a process that has ended: it is replaced");
        }
    }
    if (!bound) {
        throw_errno(errno, trying,
                    errno == EADDRINUSE                     ? "another process has just made it: take another path"
                    : errno == ENOENT || errno == ENOTDIR   ? "its directory has to exist"
                    : errno == EACCES || errno == EROFS     ? "take a directory that this user may write to"
                    : errno == EPERM || errno == EOPNOTSUPP ? "that file system has no sockets: take another directory"
                    : errno == ENOSPC || errno == EDQUOT    ? "make room there"
                                                            : "");
    }
    struct stat file {};
    if (::listen(fd.get(), 64) != 0 || ::lstat(path_.c_str(), &file) != 0) {
        const int error = errno;
        ::unlink(path_.c_str());
        throw_errno(error, trying);
    }
    device_ = file.st_dev;
    inode_ = file.st_ino;
    fd_ = std::move(fd);
}

UnixListener::~UnixListener() {
    struct stat file {};
    // A server checks this itself, and a confined process may no longer see its socket.
    if (file_server() != nullptr ||
        (::lstat(path_.c_str(), &file) == 0 && file.st_dev == device_ && file.st_ino == inode_)) {
        files::remove_at(AT_FDCWD, path_.c_str());
    }
}

} // namespace vmm
