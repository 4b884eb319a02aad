// The configuration file: options of `vmm run` as JSON (docs/config.md).
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace vmm {

/// What the file says of one option: its long name without the dashes, and the words it would have on the command line.
struct ConfigFileEntry {
    std::string option;
    std::vector<std::string> values; ///< never empty
    std::vector<std::size_t> lines;  ///< where each of them stands, from 1 on

    friend bool operator==(const ConfigFileEntry&, const ConfigFileEntry&) = default;
};

/// Understands the text of a configuration file: one object whose members are options. A value is a string, a number, a
/// boolean (an option without a value), or an array of strings and objects, for what may be given several times. An
/// object stands for the words of one device: {"path": "a.img", "ro": true, "queues": 2} is "a.img,ro,queues=2"; an
/// array in it has the word once for each element. In the file's order. It takes time in proportion to the text. `name`
/// goes into messages. Throws Error: where it is no such object, with the line at which it went wrong, and the member.
[[nodiscard]] std::vector<ConfigFileEntry> parse_config_file(const std::string& text, const std::string& name);

/// The same for a file, which may be a pipe. `stop_fd` ends the wait for it: see read_some(). Throws Error: it cannot
/// be read, or is larger than 1 MiB.
[[nodiscard]] std::vector<ConfigFileEntry> read_config_file(const std::string& path, int stop_fd = -1);

/// What every message about a place in such a file begins with.
[[nodiscard]] std::string config_file_error(const std::string& name, std::size_t line);

} // namespace vmm
