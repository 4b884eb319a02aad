// The addresses behind a host's name, as the socket API takes them.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "kvm/host/unique_fd.hpp"
#include "vmm/migration/address.hpp"

namespace vmm {

/// When something that waits gives up.
using GiveUpTime = std::chrono::steady_clock::time_point;

/// `patience` from now: never, if it is longer than a year.
[[nodiscard]] GiveUpTime give_up_after(std::chrono::milliseconds patience) noexcept;
/// What is left until then, for poll(2): 0 if it has passed.
[[nodiscard]] int poll_milliseconds(GiveUpTime give_up) noexcept;
/// "10 s", "250 ms"
[[nodiscard]] std::string in_words(std::chrono::milliseconds patience);

/// One address with a port.
class Endpoint {
  public:
    /// `host` is an IPv4 address, or an IPv6 address, perhaps with a scope (fe80::1%eth0); nothing if it is neither.
    [[nodiscard]] static std::optional<Endpoint> from_numbers(const std::string& host, in_port_t port);
    /// Who is at the other end of `socket`, or at this one. Throws Error: it is not connected any more.
    [[nodiscard]] static Endpoint peer_of_socket(int socket);
    [[nodiscard]] static Endpoint own_of_socket(int socket);

    [[nodiscard]] const sockaddr* get() const noexcept;
    [[nodiscard]] socklen_t size() const noexcept { return size_; }
    [[nodiscard]] int family() const noexcept { return storage_.ss_family; }
    [[nodiscard]] in_port_t port() const noexcept;
    /// Without the port.
    [[nodiscard]] std::string host() const;
    /// Whether what is sent there does not leave this host.
    [[nodiscard]] bool is_loopback() const noexcept;

    friend bool operator==(const Endpoint& a, const Endpoint& b) noexcept {
        return a.family() == b.family() && a.port() == b.port() && a.host() == b.host();
    }

  private:
    sockaddr_storage storage_{};
    socklen_t size_ = 0;
};

/// Every address of a TCP address: what is written in numbers, "localhost", and what `getent ahosts` knows of other
/// names. That is a program of the C library's, which most hosts have: to look names up loads shared libraries, which a
/// program that is linked statically should not. Throws Error: there is none, or it is not known by `give_up`;
/// StoppedError.
[[nodiscard]] std::vector<Endpoint> resolve(const MigrationAddress& address, int stop_fd, GiveUpTime give_up);

/// A new TCP socket that does not block and is not inherited. Throws Error "cannot <tried>".
[[nodiscard]] UniqueFd make_tcp_socket(int family, const std::string& tried);

/// No byte waits for others, and a host that has gone is noticed. Best effort: Channel's patience is the rule.
void set_tcp_options(int socket) noexcept;

/// Throws Error: TCP at `where` leaves this host, and is not protected.
[[noreturn]] void throw_unprotected(const std::string& where);
/// Throws Error if neither TLS nor a declaration allows TCP to `endpoint`. A name may have led there.
void check_protected(const MigrationSecurity& security, const MigrationAddress& address, const Endpoint& endpoint);

} // namespace vmm
