#include "vmm/control/device_arguments.hpp"

#include <algorithm>
#include <iterator>
#include <string>
#include <vector>

#include "vmm/limits.hpp"
#include "vmm/network/port_forward.hpp"

namespace vmm::control {

DiskConfig disk_config_of(const Arguments& arguments) {
    DiskConfig disk;
    disk.path = *arguments.word("path");
    disk.read_only = arguments.flag("read_only");
    disk.direct = arguments.flag("direct");
    disk.queues = static_cast<unsigned>(arguments.number("queues").value_or(disk.queues));
    for (const unsigned bytes : limits::kSectorBytes) {
        disk.sector_bytes = arguments.word("sector") == std::to_string(bytes) ? bytes : disk.sector_bytes;
    }
    disk.moderation = arguments.word("moderation") != "off";
    disk.id = arguments.word("id").value_or("");
    disk.check();
    return disk;
}

NetConfig net_config_of(const Arguments& arguments) {
    NetConfig net;
    net.tap = arguments.word("tap").value_or("");
    net.user = arguments.flag("user");
    net.mac = arguments.word("mac").value_or("");
    net.queues = static_cast<unsigned>(arguments.number("queues").value_or(net.queues));
    net.host_loopback = arguments.flag("host_loopback");
    for (const bool udp : {false, true}) {
        std::ranges::move(parse_port_forwards(arguments.word(udp ? "udp" : "tcp").value_or(""), udp),
                          std::back_inserter(net.forwards));
    }
    net.check();
    return net;
}

} // namespace vmm::control
