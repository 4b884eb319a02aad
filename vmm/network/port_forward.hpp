// Ports of the host at which a guest in user mode is reached, as people write them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "vmm/device_configs.hpp"

namespace vmm {

/// Parses "[ADDRESS/]PORT[:PORT]". The first port is the host's, and the second is the guest's; without a second port
/// they are the same. Throws Error if `text` is something else.
[[nodiscard]] PortForward parse_port_forward(const std::string& text, bool udp);

/// Parses a list of them, separated by commas. An empty text is an empty list. Throws Error if one of them is something
/// else.
[[nodiscard]] std::vector<PortForward> parse_port_forwards(std::string_view text, bool udp);

} // namespace vmm
