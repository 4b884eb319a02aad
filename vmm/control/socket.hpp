// Where a control socket comes from, and who is told that it serves.
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
    /// Makes one at `path`, for this user alone, as UnixListener does. Its file goes with it. Throws Error.
    ListeningSocket(const std::string& path, const std::function<void(const std::string&)>& warn);
    /// Takes over descriptor `fd`, which somebody has opened for us. Throws Error: it is no unix stream socket that
    /// listens.
    explicit ListeningSocket(int fd);

    [[nodiscard]] int fd() const noexcept { return listener_ ? listener_->fd() : inherited_.get(); }

  private:
    std::optional<UnixListener> listener_;
    UniqueFd inherited_;
};

/// The first descriptor that an init system has opened for this process: LISTEN_FDS and LISTEN_PID in
/// sd_listen_fds(3). Nothing if there is none. Throws Error: there are several.
[[nodiscard]] std::optional<int> inherited_socket();

/// Connects to whoever has set NOTIFY_SOCKET: for a process that will not find it by its name any more. It does
/// nothing if that fails; notify_supervisor() then says why. Threads: the main one, before notify_supervisor().
void connect_supervisor();

/// Tells the init system, or whoever has set NOTIFY_SOCKET, `state`: "READY=1" (sd_notify(3)). Returns why that failed;
/// empty if it did not, or if nobody wants to know.
[[nodiscard]] std::string notify_supervisor(const std::string& state);

} // namespace vmm::control
