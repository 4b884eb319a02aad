// How options describe devices: words between commas.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/cli/option.hpp"
#include "vmm/config.hpp"

namespace vmm {

/// One word of a device's option. In a configuration file it is one member of the object that stands for the device.
struct DeviceWord {
    enum class Kind {
        kFirst,  ///< a value without a name, which comes first: PATH
        kFlag,   ///< a name alone: ro
        kNumber, ///< name=N
        kText,   ///< name=TEXT
        kTexts,  ///< name=TEXT, any number of times
        kSwitch, ///< name=on|off; in a configuration file also true and false
    };
    std::string name;
    Kind kind = Kind::kText;
    std::string help{};
    std::string form{};                 ///< what help shows for the value: "STR"
    std::vector<std::string> choices{}; ///< the only values, if there are any
    Limits limits{};                    ///< of kNumber
    std::string pattern{};              ///< an ECMAScript expression without commas for the value; empty: any text
    std::size_t most_bytes = 0;         ///< of a text; 0: any
    bool is_kind = false;               ///< whether a device must have exactly one of the words that are marked so
};

/// How a device is described. A comma within a value is written twice.
struct DeviceSyntax {
    std::string option;       ///< without the dashes
    bool is_repeated = false; ///< whether the option may be given several times
    std::vector<DeviceWord> words;
    std::string usage{}; ///< for people: "PATH[,cid=N]"
};

/// An ECMAScript expression for every text that has the form of `syntax`. It also accepts words that exclude each
/// other.
[[nodiscard]] std::string device_pattern(const DeviceSyntax& syntax);

/// Every option that describes devices.
[[nodiscard]] std::span<const DeviceSyntax> device_syntaxes();
/// The syntax of one option; null if the option describes no device.
[[nodiscard]] const DeviceSyntax* find_device_syntax(std::string_view option);

// All of these throw Error, which names the wrong word and the words that are allowed.
[[nodiscard]] DiskConfig parse_disk_option(const std::string& text);
[[nodiscard]] NetConfig parse_net_option(const std::string& text);
[[nodiscard]] VsockConfig parse_vsock_option(const std::string& text);
[[nodiscard]] MemoryFrom parse_memory_from_option(const std::string& text);
[[nodiscard]] BalloonConfig parse_balloon_option(const std::string& text);

} // namespace vmm
