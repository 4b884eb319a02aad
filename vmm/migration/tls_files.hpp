// What a directory with certificates has in it. The program that does TLS shares this: it links nothing of ours.
#pragma once

#include <array>
#include <string_view>

namespace vmm {

/// The files of one end: who signs certificates, our certificate, and its key. QEMU and libvirt use the same names.
[[nodiscard]] constexpr std::array<std::string_view, 3> tls_files(bool listens) noexcept {
    return listens ? std::array<std::string_view, 3>{"ca-cert.pem", "server-cert.pem", "server-key.pem"}
                   : std::array<std::string_view, 3>{"ca-cert.pem", "client-cert.pem", "client-key.pem"};
}

} // namespace vmm
