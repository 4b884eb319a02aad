// What the program can be asked to do, as values.
#pragma once

#include <string>
#include <variant>

#include "vmm/bench/command.hpp"
#include "vmm/config.hpp"
#include "vmm/memory_pool.hpp"

namespace vmm {

/// `vmm run`
struct RunCommand {
    Config config;                ///< `serial` and `log` are not filled in; `console` says only whether there is one
    std::string serial = "stdio"; ///< "stdio", "none" or a file
    std::string console = "none"; ///< where a virtio console goes, as for `serial`
    std::string report;           ///< a file; empty: none
    std::string dump_dtb;    ///< a file for the guest's device tree; empty: none. With a file, the guest is not run.
    std::string log_file;    ///< empty: none
    std::string config_file; ///< the file the rest was read from; empty: only the command line
    LogLevel log_level = LogLevel::kWarning;
    bool watch = false;  ///< whether to say once a second what KVM has mapped
    bool summary = true; ///< whether to end with a few lines for people
};

/// `vmm pool`
struct PoolCommand {
    MemoryPoolConfig config; ///< `log` is not filled in
    bool quiet = false;      ///< whether only errors are said
};

/// `vmm doctor`
struct DoctorCommand {};

/// Help, the version, the schema, or what is wrong with the words. Nothing else is to be done.
struct TextCommand {
    std::string text;
    int exit_code; ///< 0: the text goes to standard output; 2: to standard error
};

using Command = std::variant<RunCommand, PoolCommand, DoctorCommand, BenchCommand, BenchCompareCommand, TextCommand>;

} // namespace vmm
