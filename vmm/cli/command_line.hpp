// The command line: from words to a command. Only command_line.cpp uses CLI11.
#pragma once

#include <string>
#include <vector>

#include "vmm/cli/commands.hpp"
#include "vmm/cli/option.hpp"

namespace vmm {

/// A command of the program, as help, manual and completions describe it.
struct CommandText {
    std::string name; ///< "run"; "vmm" is the program itself
    std::string help;
    std::vector<Option> options;
    std::string notes; ///< the text below the options
};

/// Describes the program first, then each of its commands.
[[nodiscard]] std::vector<CommandText> describe_commands();

/// Parses the words with which the program was started. It creates nothing, and opens only the file of --config. A
/// RunCommand with `incoming` keeps `argv`.
[[nodiscard]] Command parse_command_line(int argc, const char* const* argv);

} // namespace vmm
