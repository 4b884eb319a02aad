// Networking without privileges: passt, a program that speaks to a guest in Ethernet frames and to the host in sockets
// (https://passt.top). The only place that knows its options.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "devices/frame_filter.hpp"
#include "kvm/host/unique_fd.hpp"
#include "vmm/config.hpp"
#include "vmm/host/child_process.hpp"

namespace vmm {

/// What the guest finds: its own address, given by DHCP, and those of its gateway and name server. IPv4 only.
namespace user_network {
inline constexpr const char* kGuestAddress = "10.0.2.15";
inline constexpr const char* kPrefixBits = "24";
inline constexpr const char* kGateway = "10.0.2.2";
inline constexpr const char* kNameServer = "10.0.2.3";
} // namespace user_network

/// What keeps the guest of `net` from the host itself; null where it may reach it (`host-loopback`). passt alone does
/// not: it connects a guest to the host's loopback interface and addresses, whatever it is told of the gateway's.
/// Throws Error: the host's addresses cannot be read.
[[nodiscard]] std::unique_ptr<devices::FrameFilter> make_frame_filter(const NetConfig& net);

/// Throws Error: passt is not installed, or a port that is to be forwarded cannot be had. Starts nothing.
void check_user_network(const NetConfig& net);

/// The words passt is started with, after its name. `socket` is its end of the connection.
[[nodiscard]] std::vector<std::string> passt_arguments(const NetConfig& net, int socket, bool as_root);

/// A passt of our own for one network interface. It is another process, confined by itself, and ends with its
/// connection, however we end. Of what this process has it gets that connection and PATH. Nothing waits for it to be
/// ready: frames wait in the socket meanwhile.
///
/// Threads: one at a time.
class UserNetwork {
  public:
    /// Throws Error: it cannot be started.
    explicit UserNetwork(const NetConfig& net);

    /// Our end of the connection (devices::FrameStream). Once.
    [[nodiscard]] UniqueFd take_socket() noexcept { return std::move(socket_); }
    [[nodiscard]] pid_t pid() const noexcept { return process_->pid(); }

    /// The last line that it has said on its standard error, without the newline; empty if there is none.
    [[nodiscard]] std::string last_words() const;

  private:
    UniqueFd socket_;
    UniqueFd errors_;                     ///< the pipe that its standard error goes to
    std::optional<ChildProcess> process_; ///< ends with this
};

} // namespace vmm
