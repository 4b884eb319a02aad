// Where connections of a migration arrive.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "kvm/host/unique_fd.hpp"
#include "kvm/host/unix_listener.hpp"
#include "vmm/migration/address.hpp"
#include "vmm/migration/channel.hpp"

namespace vmm {

/// Listens at an address. A unix socket has mode 0600, and its file goes with this.
///
/// Threads: one, but for establish().
class MigrationListener {
  public:
    /// Throws Error: somebody else listens there, or the address is not this host's. `warn` is told of what is odd and
    /// no error. A listener for TCP takes only what `security` allows. A name that has several addresses stands for
    /// the first: "localhost" is 127.0.0.1.
    MigrationListener(MigrationAddress address, MigrationSecurity security,
                      const std::function<void(const std::string&)>& warn);
    MigrationListener(const MigrationListener&) = delete;
    MigrationListener& operator=(const MigrationListener&) = delete;

    /// Where it listens: the port that the host chose takes the place of 0.
    [[nodiscard]] const MigrationAddress& address() const noexcept { return address_; }
    /// Readable when somebody wants to connect. On loan.
    [[nodiscard]] int fd() const noexcept { return unix_ ? unix_->fd() : tcp_.get(); }

    /// Somebody who has connected, and of whom nothing is known yet.
    struct Caller {
        UniqueFd socket;
        std::string name; ///< for messages
    };
    /// Takes the next one; nothing if there is none, or if it has gone again. Does not wait. Throws Error: the host has
    /// no descriptor left.
    [[nodiscard]] std::optional<Caller> take();

    /// Makes sure who `caller` is, by their user or by TLS. This may take up to `patience`. Throws Error if they are
    /// nobody we deal with, or if they are silent. Throws StoppedError once `stop_fd` is readable, as Channel does. Any
    /// threads may call it, several at once.
    [[nodiscard]] std::unique_ptr<Channel> establish(Caller caller, int stop_fd,
                                                     std::chrono::milliseconds patience) const;

  private:
    MigrationAddress address_;
    MigrationSecurity security_;
    std::optional<UnixListener> unix_;
    UniqueFd tcp_;
};

} // namespace vmm
