// A unix socket that other programs connect to.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <functional>
#include <optional>
#include <string>

#include "kvm/host/unique_fd.hpp"

namespace vmm {

/// A unix socket that listens. The destructor deletes its file, unless another file is there by then.
///
/// Threads: one at a time.
class UnixListener {
  public:
    /// The longest path that the kernel takes, in bytes (unix(7)).
    static constexpr std::size_t kLongestPath = 107;

    /// Listens at `path`, 1 to kLongestPath bytes, with a non-blocking socket of `type` (SOCK_STREAM or
    /// SOCK_SEQPACKET). `what` names the socket in messages: "the vsock's unix socket". If a socket of this user is
    /// there and nobody listens on it, a killed process has left it: it is replaced, and `warn` is told, unless it is
    /// empty.
    /// Any other file at `path` stays, and is an error. A lock keeps processes apart that do this at the same time.
    /// Throws Error.
    UnixListener(std::string path, int type, std::string what, const std::function<void(const std::string&)>& warn);
    ~UnixListener();
    UnixListener(const UnixListener&) = delete;
    UnixListener& operator=(const UnixListener&) = delete;

    [[nodiscard]] int fd() const noexcept { return fd_.get(); }
    [[nodiscard]] const std::string& path() const noexcept { return path_; }

  private:
    const std::string path_;
    UniqueFd fd_;
    dev_t device_ = 0; ///< of the file that was made
    ino_t inode_ = 0;
};

/// The user behind the other end of a connection.
struct UnixPeer {
    uid_t user = 0;
    pid_t process = 0;
};
/// The peer of `socket`; nothing if the kernel does not say (SO_PEERCRED in unix(7)).
[[nodiscard]] std::optional<UnixPeer> peer_of(int socket) noexcept;

/// True if one side, whose user is `own`, may trust the other side: its user is the same, or root.
[[nodiscard]] constexpr bool is_trusted(uid_t peer, uid_t own) noexcept {
    return peer == own || peer == 0;
}

/// Makes a new unix socket of `type` that does not block and is not inherited. Empty, with errno set, if it fails.
[[nodiscard]] UniqueFd make_unix_socket(int type) noexcept;

/// Connects `fd` to the unix socket at `path`, which has at most UnixListener::kLongestPath bytes. Returns 0, or errno.
[[nodiscard]] int connect_unix_socket(int fd, const std::string& path) noexcept;

} // namespace vmm
