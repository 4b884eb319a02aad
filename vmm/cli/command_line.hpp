// The command line: from words to values. Only command_line.cpp and bench_options.cpp use CLI11.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "vmm/bench/command.hpp"
#include "vmm/config.hpp"

namespace vmm {

/// `vmm run`
struct RunCommand {
    Config config;                ///< `serial` and `log` are not filled in, `console` only as to whether it is there
    std::string serial;           ///< "stdio", "none" or a file
    std::string console = "none"; ///< as `serial`: of a virtio console
    std::string report;           ///< a file; empty: none
    std::string dump_dtb;         ///< a file for the guest's device tree; empty: none. The guest is then not run
    std::string log_file;         ///< empty: none
    std::string config_file;      ///< where the rest was read from; empty: only the command line
    LogLevel log_level = LogLevel::kWarning;
    bool watch = false;  ///< whether to say once a second what KVM has mapped
    bool summary = true; ///< whether to end with a few lines for people
};

/// `vmm doctor`
struct DoctorCommand {};

/// Help, the version, or what is wrong with the words; nothing else is to be done.
struct TextCommand {
    std::string text;
    int exit_code; ///< 0: on standard output; 2: on standard error
};

using Command = std::variant<RunCommand, DoctorCommand, BenchCommand, BenchCompareCommand, TextCommand>;

/// One option, as help, manual and completions tell of it.
struct OptionText {
    std::vector<std::string> names; ///< "-m", "--memory"; a positional has no dash
    std::string value;              ///< what follows it: "FILE", "none|host|all"; empty: nothing
    std::string help;
    std::string standard; ///< what holds without it; empty: not said
};

/// A command of the program.
struct CommandText {
    std::string name; ///< "run"; "vmm" is the program itself
    std::string help;
    std::vector<OptionText> options;
    std::string notes; ///< what stands below the options
};

/// The program first, then each of its commands.
[[nodiscard]] std::vector<CommandText> describe_commands();

/// Understands the words a program was started with. Creates nothing; opens nothing but what --config names.
[[nodiscard]] Command parse_command_line(int argc, const char* const* argv);

} // namespace vmm
