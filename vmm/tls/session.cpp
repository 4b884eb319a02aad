#include "vmm/tls/session.hpp"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "vmm/migration/tls_files.hpp"

namespace vmm::tls {

namespace {

using Clock = std::chrono::steady_clock;

/// How long an end that is gone may take to receive what was sent.
constexpr std::chrono::seconds kLastBytesPatience{4};
constexpr std::size_t kBufferBytes = 128UL * 1024;

/// Returns the first error of the library, and removes all of them.
std::string library_error() {
    const unsigned long error = ::ERR_get_error();
    const char* const text = error == 0 ? nullptr : ::ERR_reason_error_string(error);
    ::ERR_clear_error();
    return text == nullptr ? "the library gives no reason" : text;
}

int no_passphrase(char* /*buffer*/, int /*size*/, int /*writing*/, void* /*data*/) {
    return 0;
}

int milliseconds_until(Clock::time_point end) noexcept {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now()).count();
    return static_cast<int>(std::clamp<decltype(left)>(left, 0, 60'000));
}

bool is_address(const std::string& name) noexcept {
    std::array<unsigned char, sizeof(in6_addr)> address{};
    return ::inet_pton(AF_INET, name.c_str(), address.data()) == 1 ||
           ::inet_pton(AF_INET6, name.c_str(), address.data()) == 1;
}

/// Whether something that was sent is not acknowledged yet. The end of the own direction counts, too.
bool is_unacknowledged(int tcp) noexcept {
    tcp_info info{};
    socklen_t size = sizeof(info);
    return ::getsockopt(tcp, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 &&
           (info.tcpi_state == TCP_FIN_WAIT1 || info.tcpi_state == TCP_CLOSING || info.tcpi_state == TCP_LAST_ACK);
}

/// Ends sending on `tcp`, and waits until the other host has acknowledged everything. Bytes that come meanwhile are
/// dropped.
void wait_for_acknowledgement(int tcp) noexcept {
    constexpr int kPauseMs = 2;
    const auto end = Clock::now() + kLastBytesPatience;
    std::array<char, 4096> bytes;
    ::shutdown(tcp, SHUT_WR);
    while (is_unacknowledged(tcp) && milliseconds_until(end) > 0) {
        if (::recv(tcp, bytes.data(), bytes.size(), MSG_DONTWAIT) <= 0) {
            ::poll(nullptr, 0, kPauseMs);
        }
    }
}

} // namespace

Session::Session(Role role, std::string directory, std::string name)
    : role_(role), directory_(std::move(directory)), name_(std::move(name)), context_(::SSL_CTX_new(::TLS_method())) {
    SSL_CTX* const context = context_.get();
    if (context == nullptr || ::SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) != 1 ||
        ::SSL_CTX_set_max_proto_version(context, TLS1_3_VERSION) != 1) {
        throw Failure("OpenSSL does not do TLS 1.3: " + library_error());
    }
    ::SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    ::SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    ::SSL_CTX_set_num_tickets(context, 0);
    ::SSL_CTX_set_read_ahead(context, 1);
    ::SSL_CTX_set_default_read_buffer_len(context, kBufferBytes);
    ::SSL_CTX_set_default_passwd_cb(context, no_passphrase);
    ::SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
    ::SSL_CTX_set_purpose(context, role_ == Role::kConnect ? X509_PURPOSE_SSL_SERVER : X509_PURPOSE_SSL_CLIENT);

    const auto [ca, certificate, key] = tls_files(role_ == Role::kListen);
    const auto path = [this](std::string_view file) { return directory_ + "/" + std::string(file); };
    if (::SSL_CTX_load_verify_locations(context, path(ca).c_str(), nullptr) != 1) {
        throw Failure("there is no certificate in " + path(ca) + ": " + library_error());
    }
    if (::SSL_CTX_use_certificate_chain_file(context, path(certificate).c_str()) != 1) {
        throw Failure("there is no certificate to use in " + path(certificate) + ": " + library_error());
    }
    if (::SSL_CTX_use_PrivateKey_file(context, path(key).c_str(), SSL_FILETYPE_PEM) != 1) {
        throw Failure("there is no key in " + path(key) + " that belongs to " + path(certificate) + ": " +
                      library_error() + " (it is in PEM form, without a passphrase)");
    }

    connection_.reset(::SSL_new(context));
    SSL* const connection = connection_.get();
    if (connection == nullptr) {
        throw Failure("OpenSSL does not work: " + library_error());
    }
    if (role_ == Role::kListen) {
        ::SSL_set_accept_state(connection);
        return;
    }
    ::SSL_set_connect_state(connection);
    X509_VERIFY_PARAM* const checks = ::SSL_get0_param(connection);
    ::X509_VERIFY_PARAM_set_hostflags(checks, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    const int is_set = is_address(name_) ? ::X509_VERIFY_PARAM_set1_ip_asc(checks, name_.c_str())
                                         : ::X509_VERIFY_PARAM_set1_host(checks, name_.c_str(), name_.size());
    if (name_.empty() || is_set != 1) {
        throw Failure("'" + name_ + "' is no name that a certificate can have");
    }
}

/// Repeats `call` until it has done its work. It must return what OpenSSL's functions return.
template <typename Call>
void Session::complete(const Call& call) {
    for (;;) {
        ::ERR_clear_error();
        errno = 0;
        const int result = call();
        if (result > 0) {
            return;
        }
        const int error = ::SSL_get_error(connection_.get(), result);
        if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE) {
            const std::string why = reason(error);
            wait_for_acknowledgement(tcp_); // the other end must read an alert with the reason
            throw Failure(why);
        }
        const short events = error == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT;
        std::array<pollfd, 2> ready{{{tcp_, events, 0}, {plain_, 0, 0}}};
        if (::poll(ready.data(), ready.size(), -1) > 0 && ready[1].revents != 0) {
            throw NobodyWaits();
        }
    }
}

void Session::shake_hands(int tcp, int plain) {
    tcp_ = tcp;
    plain_ = plain;
    SSL* const connection = connection_.get();
    if (::SSL_set_fd(connection, tcp) != 1) {
        throw Failure("OpenSSL does not take the connection: " + library_error());
    }
    complete([connection] { return ::SSL_do_handshake(connection); });
    // In TLS 1.3 a client has finished the handshake before its certificate is checked. Here it learns the result of
    // that check.
    char taken = '+';
    if (role_ == Role::kListen) {
        complete([&] { return ::SSL_write(connection, &taken, 1); });
    } else {
        complete([&] { return ::SSL_read(connection, &taken, 1); });
    }
}

std::string Session::reason(int error) const {
    const int system_error = errno;
    if (error == SSL_ERROR_ZERO_RETURN || (error == SSL_ERROR_SYSCALL && system_error == 0)) {
        return "the other end has closed the connection (see what it says)";
    }
    if (error == SSL_ERROR_SYSCALL) {
        std::array<char, 128> text{};
        return std::string("the connection broke: ") + ::strerror_r(system_error, text.data(), text.size()) +
               " (see what the other end says)";
    }
    const unsigned long code = ::ERR_peek_error();
    if (ERR_GET_LIB(code) != ERR_LIB_SSL) {
        return library_error();
    }
    switch (ERR_GET_REASON(code)) {
    case SSL_R_CERTIFICATE_VERIFY_FAILED: {
        const long verdict = ::SSL_get_verify_result(connection_.get());
        if (verdict == X509_V_ERR_HOSTNAME_MISMATCH || verdict == X509_V_ERR_IP_ADDRESS_MISMATCH) {
            return "the certificate of the other end is not for the name " + name_ +
                   " (connect to a name or address that its subjectAltName has, or make one for this name)";
        }
        return std::string("the certificate of the other end is not accepted: ") +
               ::X509_verify_cert_error_string(verdict) + " (see that " + directory_ +
               "/ca-cert.pem is of who signed it, and that it is valid for this use and at this time)";
    }
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
        return "the other end has shown no certificate (give it a directory with client-cert.pem and client-key.pem)";
#ifdef SSL_R_UNEXPECTED_EOF_WHILE_READING
    case SSL_R_UNEXPECTED_EOF_WHILE_READING:
        return "the other end has closed the connection (see what it says, and that it uses TLS, too)";
#endif
    case SSL_R_WRONG_VERSION_NUMBER:
    case SSL_R_UNSUPPORTED_PROTOCOL:
    case SSL_R_UNKNOWN_PROTOCOL:
    case SSL_R_HTTP_REQUEST:
    case SSL_R_HTTPS_PROXY_REQUEST:
    case SSL_R_BAD_RECORD_TYPE:
    case SSL_R_PACKET_LENGTH_TOO_LONG:
    case SSL_R_ENCRYPTED_LENGTH_TOO_LONG:
    case SSL_R_TLSV1_ALERT_PROTOCOL_VERSION:
        return "the other end speaks no TLS 1.3 (see that it uses TLS, too)";
    case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
        return "the other end does not accept our certificate: it does not know who signed that (see its ca-cert.pem)";
#ifdef SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED
    case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
        return "the other end wants a certificate (see what it says)";
#endif
    case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_UNSUPPORTED_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_REVOKED:
        return "the other end does not accept our certificate: " + library_error() + " (see what it says)";
    default:
        return "no TLS came about: " + library_error() + " (see what the other end says)";
    }
}

namespace {

/// Bytes on their way in one direction. The buffer is filled when it is empty, and then emptied.
class Buffer {
  public:
    [[nodiscard]] bool is_empty() const noexcept { return begin_ == end_; }
    [[nodiscard]] bool is_full() const noexcept { return end_ == bytes_.size(); }
    [[nodiscard]] char* free() noexcept { return bytes_.data() + end_; }
    [[nodiscard]] std::size_t free_size() const noexcept { return bytes_.size() - end_; }
    [[nodiscard]] const char* data() const noexcept { return bytes_.data() + begin_; }
    [[nodiscard]] std::size_t size() const noexcept { return end_ - begin_; }
    void add(std::size_t count) noexcept { end_ += count; }
    void remove(std::size_t count) noexcept {
        begin_ += count;
        if (is_empty()) {
            clear();
        }
    }
    void clear() noexcept { begin_ = end_ = 0; }

  private:
    std::vector<char> bytes_ = std::vector<char>(kBufferBytes);
    std::size_t begin_ = 0;
    std::size_t end_ = 0;
};

constexpr bool is_transient(int error) noexcept {
    return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

/// Moves bytes in both directions. Each step does what is possible at once, and returns whether it has done anything.
class Pump {
  public:
    Pump(SSL* connection, int tcp, int plain) : connection_(connection), tcp_(tcp), plain_(plain) {}

    void run() {
        while (!is_over()) {
            bool moved = take_plain();
            moved = write_tls() || moved;
            moved = end_out() || moved;
            moved = read_tls() || moved;
            moved = give_plain() || moved;
            if (!moved && !wait()) {
                return; // it took too long after the plain end was gone
            }
        }
        if (!tcp_is_broken_) {
            wait_for_acknowledgement(tcp_);
        }
    }

  private:
    [[nodiscard]] bool is_over() const noexcept { return out_is_done_ && in_is_done_; }

    /// Handles the loss of the plain end: bytes that it has sent are still sent on, and bytes for it are dropped.
    void lose_plain() noexcept {
        if (!give_up_) {
            give_up_ = Clock::now() + kLastBytesPatience;
        }
        in_.clear();
        tls_has_ended_ = in_is_done_ = true;
    }

    bool take_plain() noexcept {
        if (plain_has_ended_ || !out_.is_empty()) {
            return false;
        }
        const ssize_t count = ::recv(plain_, out_.free(), out_.free_size(), MSG_DONTWAIT);
        if (count > 0) {
            out_.add(static_cast<std::size_t>(count));
            return true;
        }
        // ECONNRESET means that it has not read all bytes that we gave it.
        if (count < 0 && is_transient(errno)) {
            return false;
        }
        plain_has_ended_ = true;
        return true;
    }

    bool write_tls() noexcept {
        bool moved = false;
        while (!out_.is_empty()) {
            std::size_t count = 0;
            ::ERR_clear_error();
            const int result = ::SSL_write_ex(connection_, out_.data(), out_.size(), &count);
            if (result == 1) {
                out_.remove(count);
                moved = true;
                continue;
            }
            if (!wants(result, write_wants_)) {
                lose_out();
                return true;
            }
            break;
        }
        return moved;
    }

    /// Handles the loss of the network for sending. Bytes that have arrived are still given to the plain end.
    void lose_out() noexcept {
        out_.clear();
        ::shutdown(plain_, SHUT_RD); // so a sender notices it at once
        plain_has_ended_ = out_is_done_ = tcp_is_broken_ = true;
    }

    bool end_out() noexcept {
        if (out_is_done_ || !plain_has_ended_ || !out_.is_empty()) {
            return false;
        }
        ::ERR_clear_error();
        const int result = ::SSL_shutdown(connection_);
        if (result < 0 && wants(result, write_wants_)) {
            closing_ = true;
            return false;
        }
        ::shutdown(tcp_, SHUT_WR);
        out_is_done_ = true;
        return true;
    }

    bool read_tls() noexcept {
        if (tls_has_ended_ || !in_.is_empty()) {
            return false;
        }
        bool moved = false;
        while (!in_.is_full()) {
            std::size_t count = 0;
            ::ERR_clear_error();
            const int result = ::SSL_read_ex(connection_, in_.free(), in_.free_size(), &count);
            if (result == 1) {
                in_.add(count);
                moved = true;
                continue;
            }
            if (!wants(result, read_wants_)) {
                tls_has_ended_ = true;
                if (::SSL_get_error(connection_, result) != SSL_ERROR_ZERO_RETURN) {
                    lose_out(); // the connection broke without a proper end
                }
                return true;
            }
            break;
        }
        return moved;
    }

    bool give_plain() noexcept {
        bool moved = false;
        while (!in_.is_empty()) {
            const ssize_t count = ::send(plain_, in_.data(), in_.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
            if (count < 0) {
                if (is_transient(errno)) {
                    return moved;
                }
                lose_plain();
                return true;
            }
            in_.remove(static_cast<std::size_t>(count));
            moved = true;
        }
        if (tls_has_ended_ && !in_is_done_) {
            ::shutdown(plain_, SHUT_WR);
            in_is_done_ = true;
            moved = true;
        }
        return moved;
    }

    /// Whether OpenSSL only waits for the network, and for which event.
    bool wants(int result, short& events) const noexcept {
        switch (::SSL_get_error(connection_, result)) {
        case SSL_ERROR_WANT_READ:
            events = POLLIN;
            return true;
        case SSL_ERROR_WANT_WRITE:
            events = POLLOUT;
            return true;
        default:
            return false;
        }
    }

    /// Returns false if the plain end has been gone for too long.
    bool wait() noexcept {
        int plain_events = !plain_has_ended_ && out_.is_empty() ? POLLIN : 0;
        plain_events |= !in_.is_empty() ? POLLOUT : 0;
        int tcp_events = !tls_has_ended_ && in_.is_empty() ? read_wants_ : 0;
        tcp_events |= !out_.is_empty() || (closing_ && !out_is_done_) ? write_wants_ : 0;
        // An end that is gone would always be ready. So would a broken connection for which no event is wanted.
        std::array<pollfd, 2> ready{{{give_up_ ? -1 : plain_, static_cast<short>(plain_events), 0},
                                     {tcp_events == 0 ? -1 : tcp_, static_cast<short>(tcp_events), 0}}};
        const int patience = give_up_ ? milliseconds_until(*give_up_) : -1;
        if (::poll(ready.data(), ready.size(), patience) > 0 && (ready[0].revents & (POLLHUP | POLLERR)) != 0) {
            lose_plain();
        }
        return patience != 0;
    }

    SSL* const connection_;
    const int tcp_;
    const int plain_;
    Buffer out_; ///< from the plain end to the network
    Buffer in_;
    bool plain_has_ended_ = false; ///< nothing more comes from the plain end
    bool tls_has_ended_ = false;
    bool closing_ = false; ///< the end of the own direction waits for the network
    bool out_is_done_ = false;
    bool in_is_done_ = false;
    bool tcp_is_broken_ = false;
    short read_wants_ = POLLIN;
    short write_wants_ = POLLOUT;
    std::optional<Clock::time_point> give_up_; ///< set once the plain end is gone
};

} // namespace

void Session::pump() {
    Pump(connection_.get(), tcp_, plain_).run();
}

} // namespace vmm::tls
