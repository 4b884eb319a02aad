// The program that does TLS for this process.
#pragma once

#include <atomic>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "kvm/host/unique_fd.hpp"
#include "vmm/host/child_process.hpp"
#include "vmm/migration/address.hpp"
#include "vmm/migration/channel.hpp"
#include "vmm/migration/endpoints.hpp"

namespace vmm {

/// A process that has the plain end of a connection with TLS and encrypts what goes through it; it ends with this. No
/// key, no certificate and no library that understands them is ever in our process.
///
/// Threads: one at a time, but for abandon().
class TlsHelper {
  public:
    struct Request {
        bool listens = false;        ///< who connects looks at the name of who listens
        std::string expected_name{}; ///< the host that we connect to; not used where we listen
        std::string peer{};          ///< the other end, for messages
    };

    /// `directory` has the certificates. Hands `socket`, which is connected, to a new process, and returns once both
    /// ends have proved who they are. Throws Error: they have not by `give_up`, or the program is missing;
    /// StoppedError, as Channel.
    TlsHelper(const std::string& directory, const Request& request, UniqueFd socket, int stop_fd, GiveUpTime give_up);
    /// Waits until what was sent has arrived, a few seconds at most, unless it is abandoned. The plain end has to be
    /// closed by then.
    ~TlsHelper();
    TlsHelper(const TlsHelper&) = delete;
    TlsHelper& operator=(const TlsHelper&) = delete;

    /// Our end, once: a unix stream socket.
    [[nodiscard]] UniqueFd take_plain_end() noexcept { return std::move(plain_); }

    /// What is still under way may be lost. Threads: any.
    void abandon() noexcept { abandoned_ = true; }

    [[nodiscard]] pid_t pid() const noexcept { return process_->pid(); }

  private:
    UniqueFd plain_;
    UniqueFd status_;                     ///< it ends when the process does
    std::optional<ChildProcess> process_; ///< always there once this is constructed
    std::atomic<bool> abandoned_ = false;
};

/// The connection that `socket` is, with TLS if `security` asks for that. Throws as TlsHelper.
[[nodiscard]] std::unique_ptr<Channel> make_tcp_channel(UniqueFd socket, const MigrationSecurity& security,
                                                        TlsHelper::Request request, int stop_fd, GiveUpTime give_up);

/// Where the program is: beside the one that runs, in ../libexec/vmm seen from there, or where this was to be
/// installed. Throws Error: nowhere.
[[nodiscard]] std::filesystem::path tls_program();

} // namespace vmm
