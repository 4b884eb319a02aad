// Where a guest that migrates comes from, or goes to.
#pragma once

#include <string>
#include <string_view>

#include "kvm/host/export.hpp"

VMM_API_BEGIN
namespace vmm {

/// The end of a connection: a unix socket of this host, or a TCP port of any.
struct MigrationAddress {
    enum class Kind { kUnix, kTcp };
    Kind kind = Kind::kUnix;
    std::string path{}; ///< of the socket, 1 to 107 bytes; empty with kTcp
    std::string host{}; ///< a name, or an IPv4 or IPv6 address without brackets (fe80::1%eth0, too); empty with kUnix
    std::string port{}; ///< a decimal number from 0 to 65535, 0 for one that the host chooses; empty with kUnix

    /// Understands "unix:PATH", "tcp:HOST:PORT" and "tcp:[IPV6]:PORT". Throws Error: it is none of them. Names are
    /// looked up later, by `getent ahosts`: those work that other programs of this host find. Without that program only
    /// numbers and "localhost" do.
    [[nodiscard]] static MigrationAddress parse(std::string_view text);

    friend bool operator==(const MigrationAddress&, const MigrationAddress&) = default;
};

/// The address as it is parsed.
[[nodiscard]] std::string to_string(const MigrationAddress& address);

/// How a connection is protected. A unix socket needs nothing: only the same user, or root, may be at its other end.
struct MigrationSecurity {
    /// A directory with ca-cert.pem and server-cert.pem, server-key.pem (for who listens) or client-cert.pem,
    /// client-key.pem (for who connects): both ends prove who they are (TLS 1.3). The server's certificate has to be
    /// for the host that is connected to. Every client is taken whose certificate ca-cert.pem has signed, so that
    /// should sign for migrations alone; revocations are not looked at. Empty: there is no TLS.
    std::string tls_directory{};
    /// Whether TCP to another host may do without TLS. Everybody in between can then read and change the guest.
    bool insecure = false;

    /// Throws Error: `address` is TCP that is neither protected, nor of the loopback interface, nor declared insecure;
    /// or is a unix socket, and TLS is asked for; or a file of `tls_directory` that `listens` needs is missing, cannot
    /// be read, or is a key that other users may use. A name is not resolved for it: "localhost" is loopback, other
    /// names are not. On the loopback interface every user of this host gets at the guest.
    void check(const MigrationAddress& address, bool listens) const;

    friend bool operator==(const MigrationSecurity&, const MigrationSecurity&) = default;
};

} // namespace vmm
VMM_API_END
