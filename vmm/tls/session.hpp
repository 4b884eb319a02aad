// TLS 1.3, in which both ends must prove who they are.
#pragma once

#include <openssl/ssl.h>

#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>

namespace vmm::tls {

enum class Role { kConnect, kListen };

/// Says why there is no connection, for the user of the program that started this one.
class Failure : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

/// Thrown if the program that started this one has closed its end.
class NobodyWaits : public std::exception {};

/// One connection. Threads: one.
class Session {
  public:
    /// Reads the certificates in `directory`, with the names in vmm/migration/tls_files.hpp. A server's certificate
    /// must be for `name`, which is a host's name or address. A server accepts every client whose certificate is
    /// signed. Throws Failure.
    Session(Role role, std::string directory, std::string name);

    /// Establishes TLS on `tcp`, which does not block. Throws Failure, or NobodyWaits if `plain` is closed meanwhile.
    void shake_hands(int tcp, int plain);

    /// Passes bytes in both directions until both have ended, or until one end is gone.
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
