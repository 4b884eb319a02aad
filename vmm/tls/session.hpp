// TLS 1.3 with a peer that has to prove who it is, as we do.
#pragma once

#include <openssl/ssl.h>

#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>

namespace vmm::tls {

enum class Role { kConnect, kListen };

/// Why there is no connection, in words for the user of the program that started this one.
class Failure : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

/// Whoever started this program has closed its end.
class NobodyWaits : public std::exception {};

/// One connection. Threads: one.
class Session {
  public:
    /// Reads the certificates in `directory`, as vmm/migration/tls_files.hpp names them. A server's certificate has to
    /// be for `name`, which is a host's name or address. A server takes every client whose certificate is signed.
    /// Throws Failure.
    Session(Role role, std::string directory, std::string name);

    /// Establishes TLS on `tcp`, which does not block. Throws Failure, or NobodyWaits if `plain` is closed meanwhile.
    void shake_hands(int tcp, int plain);

    /// Passes bytes on until both directions have ended, or one end is gone.
    void pump();

  private:
    template <typename Call>
    void complete(const Call& call);
    [[nodiscard]] std::string reason(int error) const;

    struct Free {
        void operator()(SSL_CTX* context) const noexcept { ::SSL_CTX_free(context); }
        void operator()(SSL* connection) const noexcept { ::SSL_free(connection); }
    };

    Role role_;
    std::string directory_;
    std::string name_;
    std::unique_ptr<SSL_CTX, Free> context_;
    std::unique_ptr<SSL, Free> connection_;
    int tcp_ = -1;   ///< on loan
    int plain_ = -1; ///< on loan
};

} // namespace vmm::tls
