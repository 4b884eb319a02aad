// One connection of a migration: bytes both ways.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/host/unique_fd.hpp"
#include "vmm/migration/address.hpp"

namespace vmm {

/// The other end is gone, or is silent for longer than it may be. The guest may go on by another connection.
class LinkError : public Error {
  public:
    using Error::Error;
};

/// A process that has the plain end of a connection with TLS and encrypts what goes through it; it ends with this
/// (vmm/migration/tls_helper.hpp).
class TlsHelper;

/// A connection that is established, and protected as asked.
///
/// Threads: one may send while another receives, and a third one may call set_patience(); the rest one at a time.
class Channel {
  public:
    /// Takes over a connected stream socket, which is made non-blocking. `name` of the other end is for messages.
    /// `stop_fd` is a loan: once it is readable, whatever waits throws StoppedError. It is negative if there is none.
    Channel(UniqueFd socket, std::string name, int stop_fd);
    Channel(UniqueFd socket, std::string name, int stop_fd, std::unique_ptr<TlsHelper> tls);
    /// What was sent is still delivered, if the other end takes it. With TLS that is waited for, a few seconds at most,
    /// unless it was shut down.
    ~Channel();
    Channel(const Channel&) = delete;
    Channel& operator=(const Channel&) = delete;

    /// From now on send() and receive() throw LinkError if not a single byte passes for so long. At first: 10 s.
    void set_patience(std::chrono::milliseconds patience) noexcept { patience_.store(patience); }
    /// From now on they throw LinkError, too, if they would wait at this time or later: who sends a byte now and then
    /// is not waited for for ever. At first: never.
    void set_deadline(std::chrono::steady_clock::time_point deadline) noexcept { deadline_ = deadline; }
    static constexpr std::chrono::steady_clock::time_point kNoDeadline = std::chrono::steady_clock::time_point::max();

    /// Sends all of the pieces, in their order: at most 16 of them. Throws LinkError, StoppedError, Error.
    void send(std::span<const std::span<const std::byte>> pieces);
    void send(std::span<const std::byte> bytes);
    /// Fills `bytes`. Throws LinkError (also at the end of the connection), StoppedError, Error.
    void receive(std::span<std::byte> bytes);
    /// Waits until there is something to receive, or the other end is gone; false if `patience` passes before.
    /// Throws StoppedError.
    [[nodiscard]] bool wait_readable(std::chrono::milliseconds patience);

    /// Whether it is a unix socket, so that descriptors can be sent.
    [[nodiscard]] bool takes_descriptors() const noexcept { return takes_descriptors_; }
    /// Sends the one byte 0 with descriptors: 1 to 64. Throws UsageError: it is no unix socket. Throws as send().
    void send_descriptors(std::span<const int> fds);
    /// Receives that byte and what came with it: at most 64. Throws as receive(), and Error if there are more, or if
    /// the byte is another one. The descriptors are closed on exec.
    [[nodiscard]] std::vector<UniqueFd> receive_descriptors();

    /// The process at the other end of a unix socket, as a descriptor that is readable once it has ended (pidfd_open);
    /// empty if that is not known.
    [[nodiscard]] const UniqueFd& peer_process() const noexcept { return peer_process_; }

    /// Ends the connection at once: whoever waits, here and at the other end, gets LinkError. What was sent last may be
    /// lost. Threads: any.
    void shut_down() noexcept;

    /// "unix:/run/guest.sock", "tcp:192.0.2.1:4444"
    [[nodiscard]] const std::string& name() const noexcept { return name_; }
    /// The socket, on loan: the plain end where there is TLS.
    [[nodiscard]] int fd() const noexcept { return socket_.get(); }

  private:
    void wait(short events, std::chrono::steady_clock::time_point give_up, const std::string& tried);
    [[noreturn]] static void throw_end(const std::string& tried);

    std::unique_ptr<TlsHelper> tls_; ///< null: there is none
    UniqueFd socket_;                ///< it is closed first: the helper then sends what is left, and ends
    std::string name_;
    int stop_fd_;
    bool takes_descriptors_ = false;
    UniqueFd peer_process_;
    std::atomic<std::chrono::milliseconds> patience_{std::chrono::milliseconds(10'000)};
    std::chrono::steady_clock::time_point deadline_ = kNoDeadline;
};

/// Connects to `address`, within `patience`, and does what `security` asks for. Every address of a name is tried, and
/// none may be one that check() would refuse. `stop_fd` as in Channel. Throws Error (nobody is there, TLS fails, the
/// peer is another user's) and StoppedError.
[[nodiscard]] std::unique_ptr<Channel> connect_channel(const MigrationAddress& address,
                                                       const MigrationSecurity& security, int stop_fd,
                                                       std::chrono::milliseconds patience);

} // namespace vmm
