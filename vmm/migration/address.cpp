#include "vmm/migration/address.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdint>
#include <string>

#include "kvm/host/error.hpp"
#include "kvm/host/file_server.hpp"
#include "kvm/host/unique_fd.hpp"
#include "kvm/host/unix_listener.hpp"
#include "vmm/migration/endpoints.hpp"
#include "vmm/migration/tls_files.hpp"

namespace vmm {

namespace {

constexpr std::size_t kLongestHostName = 253; // RFC 1035, 2.3.4

[[noreturn]] void refuse_address(std::string_view text, const std::string& why, const std::string& advice) {
    throw Error("cannot use '" + std::string(text) + "' as the address of a migration: " + why + " (" + advice + ")");
}

constexpr bool is_name_character(char c) noexcept {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '-' ||
           c == '_';
}

/// Names go to a program that looks them up: none of them looks like an option.
bool is_host_name(std::string_view host) noexcept {
    return !host.empty() && host.size() <= kLongestHostName && host.front() != '-' &&
           std::ranges::all_of(host, is_name_character);
}

/// "fe80::1%eth0" has a scope: the interface that leads there.
bool is_ipv6(std::string_view host) noexcept {
    const std::size_t percent = host.find('%');
    if (percent != std::string_view::npos) {
        const std::string_view scope = host.substr(percent + 1);
        if (scope.empty() || !std::ranges::all_of(scope, is_name_character)) {
            return false;
        }
    }
    in6_addr address{};
    return ::inet_pton(AF_INET6, std::string(host.substr(0, percent)).c_str(), &address) == 1;
}

MigrationAddress parse_unix(std::string_view text, std::string_view path) {
    if (path.empty() || path.size() > UnixListener::kLongestPath) {
        refuse_address(text, "it has " + std::to_string(path.size()) + " bytes of path",
                       "a unix socket's path has 1 to " + std::to_string(UnixListener::kLongestPath));
    }
    return {.kind = MigrationAddress::Kind::kUnix, .path = std::string(path)};
}

MigrationAddress parse_tcp(std::string_view text, std::string_view rest) {
    const std::string form = "write tcp:HOST:PORT, or tcp:[ADDRESS]:PORT for IPv6";
    std::string_view host;
    if (rest.starts_with('[')) {
        const std::size_t end = rest.find("]:");
        if (end == std::string_view::npos) {
            refuse_address(text, "there is no port behind the brackets", form);
        }
        host = rest.substr(1, end - 1);
        rest.remove_prefix(end + 2);
        if (!is_ipv6(host)) {
            refuse_address(text, "what is in the brackets is no IPv6 address", form);
        }
    } else {
        const std::size_t colon = rest.rfind(':');
        if (colon == std::string_view::npos) {
            refuse_address(text, "there is no port", form);
        }
        host = rest.substr(0, colon);
        rest.remove_prefix(colon + 1);
        if (host.empty()) {
            refuse_address(text, "there is no host", form + "; 0.0.0.0 and [::] are all interfaces of this host");
        }
        if (host.find(':') != std::string_view::npos) {
            refuse_address(text, "the host has a colon in it", form);
        }
        if (!is_host_name(host)) {
            refuse_address(text, "that cannot be a host's name",
                           "a name has at most " + std::to_string(kLongestHostName) +
                               " letters, digits, '.', '-' and '_', and does not begin with '-'");
        }
    }
    unsigned port = 0;
    const char* const end = rest.data() + rest.size();
    const auto [last, error] = std::from_chars(rest.data(), end, port);
    if (rest.empty() || error != std::errc() || last != end || port > UINT16_MAX) {
        refuse_address(text, "'" + std::string(rest) + "' is no port", "a port is a number from 0 to 65535");
    }
    return {.kind = MigrationAddress::Kind::kTcp, .host = std::string(host), .port = std::to_string(port)};
}

/// Whether `host` is this host by how it is written.
bool looks_like_loopback(const std::string& host) {
    const auto numbers = Endpoint::from_numbers(host, 0);
    return host == "localhost" || (numbers && numbers->is_loopback());
}

void check_tls_file(const std::string& directory, std::string_view name) {
    const std::string path = directory + "/" + std::string(name);
    const std::string trying = "use TLS with " + path;
    // O_NONBLOCK: nobody writes to a fifo of that name, perhaps. A confined process opens no such file, and the program
    // that reads it says if it cannot.
    const bool opens = file_server() == nullptr;
    const UniqueFd file(::open(path.c_str(), (opens ? O_RDONLY : O_PATH) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
    struct stat facts {};
    if (!file || ::fstat(file.get(), &facts) != 0 ||
        (!opens && ::faccessat(AT_FDCWD, path.c_str(), R_OK, AT_EACCESS) != 0)) {
        throw_errno(errno, trying,
                    {{ENOENT, "who listens needs ca-cert.pem, server-cert.pem and server-key.pem in that directory, "
                              "who connects ca-cert.pem, client-cert.pem and client-key.pem"},
                     {EACCES, "let the user that runs this read it"}});
    }
    if (!S_ISREG(facts.st_mode)) {
        throw Error("cannot " + trying + ": it is no file (put a certificate or a key in PEM form there)");
    }
    if (name.ends_with("-key.pem") && (facts.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
        throw Error("cannot " + trying + ": it is a private key that other users may use (`chmod 600 " + path + "`)");
    }
}

} // namespace

MigrationAddress MigrationAddress::parse(std::string_view text) {
    constexpr std::string_view kUnixPrefix = "unix:";
    constexpr std::string_view kTcpPrefix = "tcp:";
    if (text.find('\0') != std::string_view::npos) {
        refuse_address(text.substr(0, text.find('\0')), "a NUL character follows", "remove that");
    }
    if (text.starts_with(kUnixPrefix)) {
        return parse_unix(text, text.substr(kUnixPrefix.size()));
    }
    if (text.starts_with(kTcpPrefix)) {
        return parse_tcp(text, text.substr(kTcpPrefix.size()));
    }
    refuse_address(text, "it begins with neither unix: nor tcp:", "write unix:PATH, tcp:HOST:PORT or tcp:[IPV6]:PORT");
}

std::string to_string(const MigrationAddress& address) {
    if (address.kind == MigrationAddress::Kind::kUnix) {
        return "unix:" + address.path;
    }
    const bool in_brackets = address.host.find(':') != std::string::npos;
    return "tcp:" + (in_brackets ? "[" + address.host + "]" : address.host) + ":" + address.port;
}

void MigrationSecurity::check(const MigrationAddress& address, bool listens) const {
    const std::string tried = "cannot use " + to_string(address) + " for a migration: ";
    if (address.kind == MigrationAddress::Kind::kUnix) {
        if (!tls_directory.empty()) {
            throw Error(tried + "a unix socket has no TLS (leave TLS out: only this user and root get at the socket)");
        }
        return;
    }
    if (tls_directory.empty()) {
        if (!insecure && !looks_like_loopback(address.host)) {
            throw_unprotected(to_string(address));
        }
        return;
    }
    for (const std::string_view name : tls_files(listens)) {
        check_tls_file(tls_directory, name);
    }
}

} // namespace vmm
