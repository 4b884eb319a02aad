// The command line: from words to values. Only cli.cpp and cli_bench.cpp use CLI11.
#pragma once

#include <string>
#include <variant>

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

/// Understands the words a program was started with. Creates nothing; opens nothing but what --config names.
[[nodiscard]] Command parse_command_line(int argc, const char* const* argv);

} // namespace vmm
