// Ports of the host at which a guest in user mode is reached, as people write them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "vmm/device_configs.hpp"

namespace vmm {

/// Takes "[ADDRESS/]PORT[:PORT]": a port of the host, and the one of the guest, which is the same if it is left out.
/// Throws Error.
[[nodiscard]] PortForward parse_port_forward(const std::string& text, bool udp);

/// Takes several of them with commas between them; an empty text has none. Throws Error.
[[nodiscard]] std::vector<PortForward> parse_port_forwards(std::string_view text, bool udp);

} // namespace vmm
