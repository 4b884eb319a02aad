// The configuration file: options of `vmm run` as JSON (docs/config.md).
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace vmm {

/// One option in the file: its long name without the dashes, and its values as the command line has them.
struct ConfigFileEntry {
    std::string option;
    std::vector<std::string> values; ///< never empty
    std::vector<std::size_t> lines;  ///< the line of each value, from 1 on

    friend bool operator==(const ConfigFileEntry&, const ConfigFileEntry&) = default;
};

/// Parses the text of a configuration file (docs/config.md) and returns its members in the file's order. An object for
/// a device becomes words: {"path": "a.img", "ro": true, "queues": 2} is "a.img,ro,queues=2". The time is proportional
/// to the length of the text. `name` is for messages. Throws Error if the text is no such object; the error names the
/// line and the member.
[[nodiscard]] std::vector<ConfigFileEntry> parse_config_file(const std::string& text, const std::string& name);

/// Does the same for a file, which may be a pipe. `stop_fd` ends the wait for it, as in read_some(). Throws Error if
/// the file cannot be read, or is larger than 1 MiB.
[[nodiscard]] std::vector<ConfigFileEntry> read_config_file(const std::string& path, int stop_fd = -1);

/// The beginning of every message about a line of such a file.
[[nodiscard]] std::string config_file_error(const std::string& name, std::size_t line);

} // namespace vmm
