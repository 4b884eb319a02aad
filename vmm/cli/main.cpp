// The program `vmm`.

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <exception>
#include <initializer_list>
#include <iostream>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include "kvm/error.hpp"
#include "kvm/format.hpp"
#include "kvm/unique_fd.hpp"
#include "vmm/bench/command.hpp"
#include "vmm/cli/command_line.hpp"
#include "vmm/cli/doctor.hpp"
#include "vmm/cli/progress_line.hpp"
#include "vmm/cli/serial_file.hpp"
#include "vmm/cli/terminal.hpp"
#include "vmm/cli/window_size.hpp"
#include "vmm/machine.hpp"
#include "vmm/report_file.hpp"
#include "vmm/stop_on_signals.hpp"
#include "vmm/watch.hpp"

namespace vmm {

namespace {

// The exit codes of the program (docs/report.md).
constexpr int kSuccess = 0;
constexpr int kHostFailed = 1;
constexpr int kGuestFailed = 3;
constexpr int kStoppedBySignal = 4;

constexpr const char* kKeysHelp = "\r\nCtrl-A x  stop the guest\r\nCtrl-A h  this help\r\n"
                                  "Ctrl-A Ctrl-A  send Ctrl-A to the guest\r\n";

int exit_code(ExitReason reason) {
    switch (reason) {
    case ExitReason::kPowerOff:
    case ExitReason::kReboot:
    case ExitReason::kStopped:
        return kSuccess;
    case ExitReason::kCrash:
        return kGuestFailed;
    case ExitReason::kSignal:
        return kStoppedBySignal;
    }
    return kHostFailed;
}

spdlog::level::level_enum spdlog_level(LogLevel level) {
    switch (level) {
    case LogLevel::kDebug:
        return spdlog::level::debug;
    case LogLevel::kInfo:
        return spdlog::level::info;
    case LogLevel::kWarning:
        return spdlog::level::warn;
    case LogLevel::kError:
        return spdlog::level::err;
    }
    return spdlog::level::err;
}

/// Standard error says what the user asked to hear; the log file has times and everything from info on.
std::shared_ptr<spdlog::logger> make_logger(const RunCommand& command) {
    auto terminal = std::make_shared<spdlog::sinks::stderr_sink_mt>();
    terminal->set_level(spdlog_level(command.log_level));
    terminal->set_pattern("vmm: %l: %v");
    std::vector<spdlog::sink_ptr> sinks{terminal};
    if (!command.log_file.empty()) {
        // Tried first: spdlog would make the folders that a mistyped name mentions.
        if (const UniqueFd probe(::open(command.log_file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
            !probe) {
            throw_errno(errno, "write the log to " + command.log_file);
        }
        try {
            auto file = std::make_shared<spdlog::sinks::basic_file_sink_mt>(command.log_file);
            file->set_level(std::min(spdlog::level::info, spdlog_level(command.log_level)));
            sinks.push_back(file);
        } catch (const spdlog::spdlog_ex& error) {
            throw Error("cannot write the log to " + command.log_file + ": " + error.what());
        }
    }
    auto logger = std::make_shared<spdlog::logger>("vmm", sinks.begin(), sinks.end());
    logger->set_level(spdlog::level::debug);
    logger->flush_on(spdlog::level::info);
    // A full disk under the log is no reason to stop, nor to talk of anything else.
    logger->set_error_handler([](const std::string& what) {
        static std::atomic<bool> said{false};
        if (!said.exchange(true)) {
            std::fprintf(stderr, "vmm: warning: cannot write the log: %s\n", what.c_str());
        }
    });
    return logger;
}

/// What `--serial` or `--console` names. The file it names, if any, is put into `file`.
CharacterConfig connect_characters(const std::string& where, std::optional<SerialFile>& file) {
    CharacterConfig config;
    if (where == "none") {
        return config;
    }
    if (where == "stdio") {
        config.output_fd = STDOUT_FILENO;
        // A terminal is only read while we are in the foreground: elsewhere reading it would stop us.
        const bool terminal = ::isatty(STDIN_FILENO) == 1;
        config.escape_keys = terminal && RawTerminal::is_available(STDIN_FILENO);
        config.input_fd = !terminal || config.escape_keys ? STDIN_FILENO : -1;
        config.show_help = [] { std::fputs(kKeysHelp, stderr); };
        return config;
    }
    file.emplace(where);
    config.output_fd = file->fd();
    return config;
}

/// Who is told how the prefault is doing: a person at a terminal by a bar, which goes when the prefault is done; else
/// the log. Beside a guest, always the log: the terminal is the guest's.
class ProgressDisplay {
  public:
    ProgressDisplay(const RunCommand& command, const LogSink& log) : log_(log) {
        if (command.summary && command.config.prefault_when == PrefaultWhen::kBefore && ::isatty(STDERR_FILENO) == 1) {
            bar_.emplace(STDERR_FILENO);
        }
    }

    void show(const prefault::Progress& progress) {
        if (bar_) {
            bar_->show(progress);
        }
        log_.show(progress);
    }
    void close() { bar_.reset(); }

  private:
    std::optional<ProgressBar> bar_;
    ProgressLog log_;
};

void prefault_before(Machine& machine, const Config& config) {
    const prefault::Report report = machine.prefault();
    if (report.scope == prefault::Scope::kAll) {
        config.log(LogLevel::kInfo,
                   vmm::format("prefault: method {} ({})", to_string(report.method), report.method_reason));
        if (!report.complete && !machine.is_stop_requested()) {
            config.log(LogLevel::kWarning,
                       "the second level is not complete, and the guest will take faults: " + report.problem);
        }
    }
}

ExitReason run_machine(Machine& machine, const Config& config, ProgressDisplay& progress) {
    if (config.prefault_when == PrefaultWhen::kBefore) {
        prefault_before(machine, config);
    }
    progress.close();
    std::optional<RawTerminal> terminal;
    for (const CharacterConfig& port : {config.serial, config.console.value_or(CharacterConfig{})}) {
        if (port.escape_keys) { // At most one of them has the terminal.
            terminal.emplace(port.input_fd);
        }
    }
    return machine.run();
}

/// What a run leaves behind when its machine is gone.
struct Ending {
    ExitReason reason = ExitReason::kStopped;
    RunReport report;
    std::string crash;
};

Ending run_to_the_end(const Config& config, std::chrono::steady_clock::time_point started,
                      std::initializer_list<std::optional<SerialFile>*> files, ProgressDisplay& progress) {
    Ending ending;
    {
        Machine machine(config, started);
        for (std::optional<SerialFile>* const file : files) {
            if (*file) {
                (*file)->keep();
            }
        }
        ending.reason = run_machine(machine, config, progress);
        ending.report = machine.report();
        ending.crash = machine.crash_description();
    }
    const std::chrono::duration<double> teardown = std::chrono::steady_clock::now() - ending.report.guest_ended;
    ending.report.teardown_seconds = teardown.count();
    return ending;
}

void warn_of_background_prefault(const Ending& ending, const Config& config) {
    const prefault::Report& report = ending.report.prefault;
    if (config.prefault_when == PrefaultWhen::kBackground && !report.problem.empty()) {
        config.log(LogLevel::kError, "the prefault in the background did not come to its end: " + report.problem);
    }
}

/// `--dump-dtb`: makes the machine, all but running it.
int write_device_tree(ReportFile& file, const Config& config, std::chrono::steady_clock::time_point started) {
    const Machine machine(config, started);
    const auto tree = machine.device_tree();
    // Any bytes may be looked at as chars.
    file.write({reinterpret_cast<const char*>(tree.data()), tree.size()});
    return kSuccess;
}

int execute(RunCommand command, std::chrono::steady_clock::time_point started) {
    validate(command.config); // Before anything is opened: what cannot be leaves nothing behind.
    command.config.stop = std::make_shared<StopRequest>();
    const StopOnSignals stop_on_signals(*command.config.stop); // As long as there is anything to give back.
    const auto logger = make_logger(command);
    std::optional<ReportFile> report_file;
    if (!command.report.empty()) {
        report_file.emplace(command.report);
    }
    std::optional<ReportFile> device_tree_file;
    if (!command.dump_dtb.empty()) {
        device_tree_file.emplace(command.dump_dtb, "the device tree");
    }
    Config& config = command.config;
    config.log = [logger](LogLevel level, std::string_view line) { logger->log(spdlog_level(level), "{}", line); };
    std::optional<SerialFile> serial_file;
    config.serial = connect_characters(command.serial, serial_file);
    std::optional<SerialFile> console_file;
    std::optional<WindowSizeSignal> window_size_signal;
    if (command.console != "none") {
        config.console = connect_characters(command.console, console_file);
        if (config.console->escape_keys) {
            config.console->size = [] { return window_size(STDIN_FILENO); };
            config.console->resized_fd = window_size_signal.emplace().fd();
        }
    }
    if (command.watch) {
        config.watch = [](const WatchSample& sample) { std::cerr << to_line(sample) << std::endl; };
    }
    ProgressDisplay progress(command, config.log);
    config.prefault.progress = [&progress](const prefault::Progress& now) { progress.show(now); };

    Ending ending;
    try {
        if (device_tree_file) {
            return write_device_tree(*device_tree_file, config, started);
        }
        ending = run_to_the_end(config, started, {&serial_file, &console_file}, progress);
    } catch (const Error&) {
        if (config.stop->is_requested_for(ExitReason::kSignal)) {
            return kStoppedBySignal; // Stopped in the middle of construction, which says so.
        }
        throw;
    }
    warn_of_background_prefault(ending, config);
    if (!ending.crash.empty()) {
        std::cerr << "vmm: the guest crashed\n" << ending.crash;
    }
    if (command.summary) {
        std::cerr << to_summary(ending.report) << '\n';
    }
    if (report_file) {
        report_file->write(to_json(ending.report));
    }
    return exit_code(ending.reason);
}

int execute(const DoctorCommand& /*command*/, std::chrono::steady_clock::time_point /*started*/) {
    const auto findings = examine_host();
    std::cout << to_text(findings);
    return can_run_guests(findings) ? kSuccess : kHostFailed;
}

int execute(const BenchCommand& command, std::chrono::steady_clock::time_point /*started*/) {
    return run_bench(command);
}

int execute(const BenchCompareCommand& command, std::chrono::steady_clock::time_point /*started*/) {
    return run_bench_compare(command);
}

int execute(const TextCommand& command, std::chrono::steady_clock::time_point /*started*/) {
    (command.exit_code == kSuccess ? std::cout : std::cerr) << command.text;
    return command.exit_code;
}

} // namespace

} // namespace vmm

int main(int argc, char** argv) {
    const auto started = std::chrono::steady_clock::now();
    // Where a standard descriptor is closed, the next file opened would take its number, and be written to by mistake.
    for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
        if (::fcntl(fd, F_GETFD) < 0) {
            [[maybe_unused]] const int lowest = ::open("/dev/null", O_RDWR);
        }
    }
    // A reader that goes away is an error of that write, not the end of the guest.
    std::signal(SIGPIPE, SIG_IGN);
    std::signal(SIGXFSZ, SIG_IGN);
    try {
        const vmm::Command command = vmm::parse_command_line(argc, argv);
        return std::visit([&](const auto& chosen) { return vmm::execute(chosen, started); }, command);
    } catch (const std::bad_alloc&) {
        std::cerr << "vmm: error: cannot allocate memory for this program itself (free some, or raise `ulimit -v` or "
                     "the memory cgroup's memory.max)\n";
        return vmm::kHostFailed;
    } catch (const std::exception& error) {
        std::cerr << "vmm: error: " << error.what() << '\n';
        return vmm::kHostFailed;
    }
}
