#include "vmm/network/port_forward.hpp"

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <system_error>

#include "kvm/host/error.hpp"

namespace vmm {

namespace {

std::uint16_t port_of(std::string_view number, const std::string& text) {
    std::uint16_t port = 0;
    const char* const end = number.data() + number.size();
    const auto [rest, error] = std::from_chars(number.data(), end, port);
    if (error != std::errc{} || rest != end || port == 0) {
        throw Error("'" + text + "': '" + std::string(number) + "' is no port, 1 to 65535");
    }
    return port;
}

} // namespace

PortForward parse_port_forward(const std::string& text, bool udp) {
    PortForward forward;
    forward.udp = udp;
    std::string_view ports = text;
    if (const std::size_t slash = ports.find('/'); slash != std::string_view::npos) {
        forward.host_address = ports.substr(0, slash);
        ports.remove_prefix(slash + 1);
    }
    const std::size_t colon = ports.find(':');
    forward.host_port = port_of(ports.substr(0, colon), text);
    forward.guest_port = colon == std::string_view::npos ? forward.host_port : port_of(ports.substr(colon + 1), text);
    return forward;
}

std::vector<PortForward> parse_port_forwards(std::string_view text, bool udp) {
    std::vector<PortForward> forwards;
    while (!text.empty()) {
        const std::size_t comma = text.find(',');
        forwards.push_back(parse_port_forward(std::string(text.substr(0, comma)), udp));
        text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
        if (comma != std::string_view::npos && text.empty()) {
            throw Error("a list of ports ends with a comma");
        }
    }
    return forwards;
}

} // namespace vmm
