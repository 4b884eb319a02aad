// The control socket, and the messages to the init system that it serves.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "kvm/host/unique_fd.hpp"
#include "kvm/host/unix_listener.hpp"

namespace vmm::control {

/// A unix socket that listens for clients: made at a path, or inherited.
///
/// Threads: one.
class ListeningSocket {
  public:
    /// Makes a socket at `path`, for this user alone, as UnixListener does. Its file is removed with this object.
    /// Throws Error.
    ListeningSocket(const std::string& path, const std::function<void(const std::string&)>& warn);
    /// Takes over descriptor `fd`, which another program has opened for this one. Throws Error if it is no unix stream
    /// socket that listens.
    explicit ListeningSocket(int fd);

    [[nodiscard]] int fd() const noexcept { return listener_ ? listener_->fd() : inherited_.get(); }

  private:
    std::optional<UnixListener> listener_;
    UniqueFd inherited_;
};

/// The first descriptor that an init system has opened for this process: LISTEN_FDS and LISTEN_PID in sd_listen_fds(3).
/// Nothing if there is none. Throws Error if there are several.
[[nodiscard]] std::optional<int> inherited_socket();

/// Connects to the socket in NOTIFY_SOCKET. It is for a process that cannot reach the socket by its name later. If it
/// fails, nothing happens now, and notify_supervisor() says why. Threads: the main one, before notify_supervisor().
void connect_supervisor();

/// Sends `state`, such as "READY=1", to the socket in NOTIFY_SOCKET (sd_notify(3)). Returns why that failed; empty if
/// it succeeded, or if the variable is not set.
[[nodiscard]] std::string notify_supervisor(const std::string& state);

} // namespace vmm::control
