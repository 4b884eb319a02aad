// What the command line says of a device, and what it means.
#pragma once

#include <string>

#include "vmm/config.hpp"

namespace vmm {

/// "PATH[,ro][,direct][,queues=N][,id=STR]": a comma within PATH or STR is written twice. Throws Error: says which word
/// is wrong, and which there are.
[[nodiscard]] DiskConfig parse_disk_option(const std::string& text);

/// "tap=NAME[,mac=MAC]". Throws Error as above.
[[nodiscard]] NetConfig parse_net_option(const std::string& text);

/// "PATH[,cid=N]", escaped like a disk. Throws Error as above.
[[nodiscard]] VsockConfig parse_vsock_option(const std::string& text);

} // namespace vmm
