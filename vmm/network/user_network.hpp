// Networking without privileges: passt, a program that exchanges Ethernet frames with a guest and uses sockets on the
// host (https://passt.top). No other file knows its options.
#pragma once

#include <netinet/in.h>
#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "devices/frame_filter.hpp"
#include "kvm/host/unique_fd.hpp"
#include "vmm/config.hpp"
#include "vmm/host/child_process.hpp"
#include "vmm/network/host_addresses.hpp"

namespace vmm {

/// The guest's network: its own address, which DHCP gives it, and those of its gateway and name server. IPv4 only.
namespace user_network {
inline constexpr const char* kGuestAddress = "10.0.2.15";
inline constexpr const char* kPrefixBits = "24";
inline constexpr const char* kGateway = "10.0.2.2";
inline constexpr const char* kNameServer = "10.0.2.3";
} // namespace user_network

/// Makes the filter that keeps the guest of `net` from the host itself; null if the guest may reach the host
/// (NetConfig::host_loopback). passt alone does not do this: whatever it is told about the gateway, it connects a guest
/// to the host's loopback interface and addresses. Throws Error if the host's addresses cannot be read.
[[nodiscard]] std::unique_ptr<devices::FrameFilter> make_frame_filter(const NetConfig& net);
/// Does the same for the host to which `sockets` belong. Throws Error if they are no sockets of rtnetlink.
[[nodiscard]] std::unique_ptr<devices::FrameFilter> make_frame_filter(const NetConfig& net,
                                                                      HostAddresses::Sockets sockets);

/// Returns the host's address in `forward`. Throws Error if it is no IPv4 address.
[[nodiscard]] in_addr host_address_of(const PortForward& forward);

/// Throws Error if passt is not installed, or if a port that is to be forwarded is not free. It starts nothing.
void check_user_network(const NetConfig& net);

/// Returns the arguments of passt, without its name. `socket` is passt's end of the connection.
[[nodiscard]] std::vector<std::string> passt_arguments(const NetConfig& net, int socket, bool as_root);

/// A process of passt for one network interface. It confines itself, and ends with its connection, however this process
/// ends. From this process it gets only that connection and PATH. Nobody waits until passt is ready, because frames
/// wait in the socket meanwhile.
///
/// Threads: one at a time.
class UserNetwork {
  public:
    /// Throws Error if passt cannot be started.
    explicit UserNetwork(const NetConfig& net);
    /// Takes over a passt that another process has started. Throws Error if one of the two is no connected unix stream
    /// socket.
    UserNetwork(UniqueFd socket, UniqueFd errors);

    /// Returns this process's end of the connection (devices::FrameStream). It may be called once.
    [[nodiscard]] UniqueFd take_socket() noexcept { return std::move(socket_); }
    /// The process; -1: another process has started it.
    [[nodiscard]] pid_t pid() const noexcept { return process_ ? process_->pid() : -1; }

    /// Leaves passt to the owner of its connection, and returns the socket from which its standard error is read. It
    /// may be called once.
    [[nodiscard]] UniqueFd let_go() noexcept;

    /// The last line of its standard error, without the newline; empty if there is none.
    [[nodiscard]] std::string last_words() const;

  private:
    UniqueFd socket_;
    UniqueFd errors_;                     ///< the socket from which its standard error is read
    std::optional<ChildProcess> process_; ///< ends with this object; nothing: another process has started it
};

} // namespace vmm
