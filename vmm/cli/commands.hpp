// The commands of the program, as values.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "vmm/bench/command.hpp"
#include "vmm/bench/migrate_command.hpp"
#include "vmm/bench/state_command.hpp"
#include "vmm/config.hpp"
#include "vmm/memory_pool.hpp"
#include "vmm/sandbox/jail.hpp"

namespace vmm {

struct RunCommand;
struct TextCommand;

/// With a sanitizer the sandbox is off by default, because the sanitizer's runtime makes system calls of its own in
/// every thread.
#ifdef VMM_SANITIZED
inline constexpr SandboxMode kStandardSandbox = SandboxMode::kOff;
#else
inline constexpr SandboxMode kStandardSandbox = SandboxMode::kOn;
#endif

/// A signal that saves the machine and then ends it.
struct SnapshotOn {
    int signal = 0;        ///< SIGUSR1 or SIGUSR2
    std::string directory; ///< the directory that is made for the snapshot

    friend bool operator==(const SnapshotOn&, const SnapshotOn&) = default;
};

/// `vmm run`
struct RunCommand {
    Config config;                ///< `serial` and `log` are not filled in; `console` says only whether there is one
    std::string serial = "stdio"; ///< "stdio", "none" or a file
    std::string console = "none"; ///< where a virtio console goes, as for `serial`
    std::optional<IncomingGuest::Options> incoming{}; ///< where the guest arrives; nothing: no guest arrives
    /// With `incoming`: returns this command, completed by the configuration that the guest's machine has at its
    /// source, a JSON text. Options that were given here count more. If the text is wrong, it returns a message
    /// instead.
    std::function<std::variant<RunCommand, TextCommand>(const std::string& config)> completed{};
    std::string report;      ///< a file; empty: none
    std::string dump_dtb;    ///< a file for the guest's device tree; empty: none. With a file, the guest is not run.
    std::string log_file;    ///< empty: none
    std::string config_file; ///< the file the rest was read from; empty: only the command line
    LogLevel log_level = LogLevel::kWarning;
    std::string api;                     ///< the path of the control socket; empty: none
    std::optional<unsigned> api_fd;      ///< the descriptor of a control socket that listens already
    std::string given = "{}";            ///< the options that were given, as the JSON of a configuration file
    std::string given_of_machine = "{}"; ///< the given options that are kept with a snapshot
    std::optional<JailSettings> jail{};  ///< nothing: the process stays where it is
    bool watch = false;                  ///< whether to say once a second what KVM has mapped
    bool summary = true;                 ///< whether to end with a few lines for people
    std::optional<SnapshotOn> snapshot_on{};

    JailSettings& jail_or_new() { return jail ? *jail : jail.emplace(); }
};

/// `vmm ctl`
struct ControlCommand {
    std::string socket;
    std::string verb;
    std::vector<std::string> words{};             ///< behind the verb
    std::map<std::string, std::string> options{}; ///< by the name of the verb's parameter
    bool json = false;
    bool wait = true; ///< whether it waits for the end of a job that was begun
};

/// `vmm pool`
struct PoolCommand {
    MemoryPoolConfig config; ///< `log` is not filled in
    bool quiet = false;      ///< whether only errors are printed
};

/// `vmm snapshot`
struct SnapshotCommand {
    enum class Action {
        kInfo,   ///< say what is in it
        kVerify, ///< compare all checksums
    };
    Action action = Action::kInfo;
    std::string directory;
    bool json = false;
    unsigned workers = 0; ///< threads that read; 0: as many as this process has CPUs
};

/// "info", "verify"
[[nodiscard]] constexpr std::string_view to_string(SnapshotCommand::Action action) noexcept {
    return action == SnapshotCommand::Action::kInfo ? "info" : "verify";
}

/// `vmm doctor`
struct DoctorCommand {};

/// A text to print: help, the version, the schema, or what is wrong with the command line. The program does nothing
/// else.
struct TextCommand {
    std::string text;
    int exit_code; ///< 0: the text goes to standard output; 2: to standard error
};

using Command =
    std::variant<RunCommand, ControlCommand, SnapshotCommand, PoolCommand, DoctorCommand, BenchCommand,
                 BenchStateCommand, BenchMigrateCommand, BenchMergeCommand, BenchCompareCommand, TextCommand>;

} // namespace vmm
