// What the command line says of a device, and what it means.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "vmm/config.hpp"

namespace vmm {

/// One word of a device's option, which is one member of the object that stands for it in a configuration file.
struct DeviceWord {
    enum class Kind {
        kFirst,  ///< a value without a name, which comes first: PATH
        kFlag,   ///< a name alone: ro
        kNumber, ///< name=N
        kText,   ///< name=TEXT
        kTexts,  ///< the same, any number of times
        kSwitch, ///< name=on|off; in a configuration file also true and false
    };
    std::string_view name;
    Kind kind = Kind::kText;
    std::string_view help;
};

/// How a device is described: words between commas; a comma within a value is written twice.
struct DeviceSyntax {
    std::string_view option; ///< without the dashes
    std::string_view usage;  ///< for people: "PATH[,cid=N]"
    bool several = false;    ///< whether the option may be given several times
    std::span<const DeviceWord> words;
};

/// Every option that describes devices in that way.
[[nodiscard]] std::span<const DeviceSyntax> device_syntaxes() noexcept;
/// That of one option; null where it is none of them.
[[nodiscard]] const DeviceSyntax* find_device_syntax(std::string_view option) noexcept;

// All of these throw Error: it says which word is wrong, and which there are.
[[nodiscard]] DiskConfig parse_disk_option(const std::string& text);
[[nodiscard]] NetConfig parse_net_option(const std::string& text);
[[nodiscard]] VsockConfig parse_vsock_option(const std::string& text);
[[nodiscard]] BalloonConfig parse_balloon_option(const std::string& text);

} // namespace vmm
