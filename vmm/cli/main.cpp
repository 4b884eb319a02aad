// The program `vmm`.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <exception>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "vmm/bench/command.hpp"
#include "vmm/cli/broken_memory.hpp"
#include "vmm/cli/command_line.hpp"
#include "vmm/cli/doctor.hpp"
#include "vmm/cli/long_lived_file.hpp"
#include "vmm/cli/progress_line.hpp"
#include "vmm/cli/queued_output.hpp"
#include "vmm/cli/terminal.hpp"
#include "vmm/cli/window_size.hpp"
#include "vmm/host/process_limits.hpp"
#include "vmm/machine.hpp"
#include "vmm/machine/character_console.hpp"
#include "vmm/output/file_roles.hpp"
#include "vmm/output/patient_write.hpp"
#include "vmm/output/report_file.hpp"
#include "vmm/output/stop_on_signals.hpp"
#include "vmm/watch.hpp"

namespace vmm {

namespace {

// The exit codes of the program (docs/report.md).
constexpr int kSuccess = 0;
constexpr int kHostFailed = 1;
constexpr int kGuestFailed = 3;
constexpr int kStoppedBySignal = 4;

/// How long somebody who takes nothing is waited for at the end.
constexpr std::chrono::milliseconds kMessagePatience{2000};

constexpr const char* kNoMemory =
    "cannot allocate memory for this program itself (free some, or raise `ulimit -v` or the "
    "memory cgroup's memory.max)";

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

/// Hands lines to a queue, so that whoever logs never waits for whoever reads.
class QueueSink final : public spdlog::sinks::base_sink<std::mutex> {
  public:
    explicit QueueSink(QueuedOutput& queue) : queue_(queue) {}

  private:
    void sink_it_(const spdlog::details::log_msg& message) override {
        spdlog::memory_buf_t line;
        formatter_->format(message, line);
        queue_.write({line.data(), line.size()});
    }
    void flush_() override {}

    QueuedOutput& queue_;
};

/// All that we say to people, on standard error and in the log file. Nobody who says something ever waits; what nobody
/// reads is dropped, counted, and told where somebody reads again. Threads: any, but for construction and end().
class Messages {
  public:
    Messages()
        : terminal_(std::make_shared<DescriptorTarget>(STDERR_FILENO), {.gap = [](std::uint64_t texts) {
                        return vmm::format("vmm: warning: {} messages were dropped here: nobody read them in time\n",
                                           texts);
                    }}) {}

    /// Throws Error where the log file of `command` cannot be written.
    void open_log(const RunCommand& command) {
        auto terminal = std::make_shared<QueueSink>(terminal_);
        terminal->set_level(spdlog_level(command.log_level));
        terminal->set_pattern("vmm: %l: %v");
        std::vector<spdlog::sink_ptr> sinks{terminal};
        if (!command.log_file.empty()) {
            auto opened = std::make_shared<LongLivedFile>(command.log_file, "write the log to " + command.log_file);
            opened->keep();
            // A full disk under the log is no reason to stop, nor to talk of anything else.
            file_.emplace(
                std::move(opened),
                QueuedOutput::Options{
                    .gap = [](std::uint64_t texts) { return vmm::format("{} lines were dropped here\n", texts); },
                    .refused =
                        [this](int error_number) {
                            say("vmm: warning: cannot write the log: " + why_output_is_lost(error_number) + "\n");
                        }});
            auto file = std::make_shared<QueueSink>(*file_);
            file->set_level(std::min(spdlog::level::info, spdlog_level(command.log_level)));
            sinks.push_back(file);
        }
        logger_ = std::make_shared<spdlog::logger>("vmm", sinks.begin(), sinks.end());
        logger_->set_level(spdlog::level::debug);
        logger_->set_error_handler([](const std::string&) {}); // Its own words would wait for a reader.
    }

    void log(LogLevel level, std::string_view line) {
        if (logger_) {
            logger_->log(spdlog_level(level), "{}", line);
        }
    }
    /// As it is, on standard error only.
    void say(std::string_view text) { terminal_.write(text); }
    /// The same, unless something else still waits: for a picture that only counts now.
    void show(std::string_view text) { terminal_.write_if_idle(text); }
    void say_error(std::string_view what) {
        say(vmm::format("vmm: error: {}\n", what));
        if (file_ && logger_) {
            logger_->sinks().back()->log(
                spdlog::details::log_msg("vmm", spdlog::level::err, {what.data(), what.size()}));
        }
    }

    /// Waits for slow readers, but not without end. Once, when all has been said.
    void end(const WritePatience& patience) noexcept {
        try {
            if (file_) {
                file_->finish(patience);
                if (const QueuedOutput::Lost lost = file_->lost(); lost.bytes != 0) {
                    say(vmm::format("vmm: warning: {} bytes of the log were lost: {}\n", lost.bytes,
                                    lost.error_number != 0 ? why_output_is_lost(lost.error_number)
                                                           : "it was taken too slowly"));
                }
            }
            terminal_.finish(patience);
        } catch (const std::exception&) { // No memory even to say so.
        }
    }

  private:
    QueuedOutput terminal_;
    std::optional<QueuedOutput> file_;
    std::shared_ptr<spdlog::logger> logger_;
};

/// The guest's output on its way to a regular file: its storage may not answer, and the guest is not to wait for that.
class FileOutput {
  public:
    /// `hurry_fd` as WritePatience has it.
    FileOutput(std::shared_ptr<OutputTarget> target, int hurry_fd)
        : queue_(std::move(target), {.capacity_bytes = 4 * kMiB, .overrun = QueuedOutput::Overrun::kDropNewest}),
          patience_{.hurry_fd = hurry_fd, .hurried = std::chrono::milliseconds(500)} {}
    /// A run that fails has output, too.
    ~FileOutput() { queue_.finish(patience_); }
    FileOutput(const FileOutput&) = delete;
    FileOutput& operator=(const FileOutput&) = delete;

    void connect(CharacterConfig& config) {
        config.sink = [this](std::span<const std::byte> bytes) {
            // Any bytes may be looked at as chars.
            queue_.write({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
        };
        config.sink_lost = [this] {
            queue_.finish(patience_);
            const QueuedOutput::Lost lost = queue_.lost();
            return LostOutput{lost.bytes, lost.error_number != 0 ? why_output_is_lost(lost.error_number)
                                                                 : "the file was written too slowly"};
        };
    }

  private:
    QueuedOutput queue_;
    WritePatience patience_;
};

/// What a serial port or console is connected to, as long as the guest runs.
struct Connection {
    std::shared_ptr<LongLivedFile> file; ///< that was named, if any
    std::optional<FileOutput> output;
};

bool is_regular(int fd) {
    struct stat facts {};
    return ::fstat(fd, &facts) == 0 && S_ISREG(facts.st_mode);
}

/// What `--serial` or `--console` names.
CharacterConfig connect_characters(const std::string& where, const char* what, Connection& connection, int hurry_fd,
                                   Messages& messages) {
    CharacterConfig config;
    if (where == "none") {
        return config;
    }
    if (where == "stdio") {
        if (is_regular(STDOUT_FILENO)) {
            connection.output.emplace(std::make_shared<DescriptorTarget>(STDOUT_FILENO), hurry_fd).connect(config);
        } else {
            config.output_fd = STDOUT_FILENO;
        }
        // A terminal is only read while we are in the foreground: elsewhere reading it would stop us.
        const bool terminal = ::isatty(STDIN_FILENO) == 1;
        config.escape_keys = terminal && RawTerminal::is_available(STDIN_FILENO);
        config.input_fd = !terminal || config.escape_keys ? STDIN_FILENO : -1;
        config.show_help = [&messages] { messages.say(kKeysHelp); };
        return config;
    }
    connection.file = std::make_shared<LongLivedFile>(where, std::string("write ") + what + " output to " + where);
    if (connection.file->is_regular()) {
        connection.output.emplace(connection.file, hurry_fd).connect(config);
    } else {
        config.output_fd = connection.file->fd();
    }
    return config;
}

/// Refuses one file in two roles, before any is opened for writing.
void check_files(const RunCommand& command) {
    using Use = FileRoles::Use;
    FileRoles roles;
    const Config& config = command.config;
    const auto add = [&roles](Use use, const char* role, const std::string& path) {
        if (!path.empty()) {
            roles.add(use, role, path);
        }
    };
    add(Use::kRead, "--config", command.config_file);
    add(Use::kRead, "--kernel", config.kernel_path);
    add(Use::kRead, "--initrd", config.initrd_path);
    for (const DiskConfig& disk : config.disks) {
        add(disk.read_only ? Use::kRead : Use::kWrite, FileRoles::kDisk, disk.path);
    }
    const bool runs = command.dump_dtb.empty();
    if (runs && (command.serial == "stdio" || command.console == "stdio")) {
        roles.add_descriptor("standard output", STDOUT_FILENO);
    }
    roles.add_descriptor("standard error", STDERR_FILENO);
    for (const auto& [role, where] : {std::pair("--serial", &command.serial), {"--console", &command.console}}) {
        if (*where != "stdio" && *where != "none") {
            add(Use::kWrite, role, *where);
        }
    }
    add(Use::kWrite, "--report", command.report);
    add(Use::kWrite, "--dump-dtb", command.dump_dtb);
    add(Use::kAppend, "--log-file", command.log_file);
    if (config.vsock) {
        add(Use::kWrite, "--vsock", config.vsock->path);
    }
}

/// Who is told how the prefault is doing: a person at a terminal by a bar, which goes when the prefault is done; else
/// the log. Beside a guest, always the log: the terminal is the guest's.
class ProgressDisplay {
  public:
    ProgressDisplay(const RunCommand& command, const LogSink& log, Messages& messages) : log_(log) {
        if (command.summary && command.config.prefault_when == PrefaultWhen::kBefore && ::isatty(STDERR_FILENO) == 1) {
            bar_.emplace(STDERR_FILENO, [&messages](std::string_view text) { messages.show(text); });
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
                      std::initializer_list<const Connection*> connections, ProgressDisplay& progress) {
    Ending ending;
    {
        Machine machine(config, started);
        const BrokenMemoryReport broken_memory(machine.memory());
        for (const Connection* const connection : connections) {
            if (connection->file) { // Only now: the disks are locked, and none of them is this file.
                connection->file->empty();
                connection->file->keep();
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
int write_device_tree(ReportFile& file, const Config& config, std::chrono::steady_clock::time_point started,
                      const WritePatience& patience) {
    const Machine machine(config, started);
    const auto tree = machine.device_tree();
    // Any bytes may be looked at as chars.
    file.write({reinterpret_cast<const char*>(tree.data()), tree.size()}, patience);
    return kSuccess;
}

/// A run, up to the last word about it.
int run(RunCommand& command, const StopOnSignals& signals, Messages& messages,
        std::chrono::steady_clock::time_point started) {
    const WritePatience patience{.hurry_fd = signals.fd()};
    check_files(command);
    messages.open_log(command);
    std::optional<ReportFile> report_file;
    if (!command.report.empty()) {
        report_file.emplace(command.report);
    }
    std::optional<ReportFile> device_tree_file;
    if (!command.dump_dtb.empty()) {
        device_tree_file.emplace(command.dump_dtb, "the device tree");
    }
    Config& config = command.config;
    config.log = [&messages](LogLevel level, std::string_view line) { messages.log(level, line); };
    Connection serial;
    config.serial = connect_characters(command.serial, "serial", serial, signals.fd(), messages);
    Connection console;
    std::optional<WindowSizeSignal> window_size_signal;
    if (command.console != "none") {
        config.console = connect_characters(command.console, "console", console, signals.fd(), messages);
        if (config.console->escape_keys) {
            config.console->size = [] { return window_size(STDIN_FILENO); };
            config.console->resized_fd = window_size_signal.emplace().fd();
        }
    }
    if (command.watch) {
        config.watch = [&messages](const WatchSample& sample) { messages.say(to_line(sample) + "\n"); };
    }
    ProgressDisplay progress(command, config.log, messages);
    config.prefault.progress = [&progress](const prefault::Progress& now) { progress.show(now); };

    if (device_tree_file) {
        return write_device_tree(*device_tree_file, config, started, patience);
    }
    const Ending ending = run_to_the_end(config, started, {&serial, &console}, progress);
    warn_of_background_prefault(ending, config);
    if (!ending.crash.empty()) {
        messages.say("vmm: the guest crashed\n" + ending.crash);
    }
    if (command.summary) {
        messages.say(to_summary(ending.report) + "\n");
    }
    if (report_file) {
        report_file->write(to_json(ending.report), patience);
    }
    return exit_code(ending.reason);
}

int execute(RunCommand command, std::chrono::steady_clock::time_point started) {
    validate(command.config); // Before anything is opened: what cannot be leaves nothing behind.
    command.config.stop = std::make_shared<StopRequest>();
    const StopOnSignals signals(*command.config.stop); // As long as there is anything to give back.
    Messages messages;
    int status = kHostFailed;
    try {
        status = run(command, signals, messages, started);
    } catch (const std::bad_alloc&) {
        messages.say_error(kNoMemory);
    } catch (const std::exception& error) {
        if (dynamic_cast<const Error*>(&error) != nullptr &&
            command.config.stop->is_requested_for(ExitReason::kSignal)) {
            status = kStoppedBySignal; // Stopped in the middle of construction, which says so.
        } else {
            messages.say_error(error.what());
        }
    }
    messages.end({.quiet = kMessagePatience, .hurry_fd = signals.fd()});
    return status;
}

int execute(const DoctorCommand& /*command*/, std::chrono::steady_clock::time_point /*started*/) {
    const auto findings = examine_host();
    const bool printed = print_result(to_text(findings));
    return printed && can_run_guests(findings) ? kSuccess : kHostFailed;
}

int execute(const BenchCommand& command, std::chrono::steady_clock::time_point /*started*/) {
    return run_bench(command);
}

int execute(const BenchCompareCommand& command, std::chrono::steady_clock::time_point /*started*/) {
    return run_bench_compare(command);
}

int execute(const TextCommand& command, std::chrono::steady_clock::time_point /*started*/) {
    if (command.exit_code == kSuccess) {
        return print_result(command.text) ? kSuccess : kHostFailed;
    }
    print_message(command.text);
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
    // Until a machine or a benchmark has something to give back.
    const vmm::ExitOnSignals exit_on_signals(vmm::kStoppedBySignal);
    vmm::raise_open_file_limit();
    try {
        const vmm::Command command = vmm::parse_command_line(argc, argv);
        return std::visit([&](const auto& chosen) { return vmm::execute(chosen, started); }, command);
    } catch (const std::bad_alloc&) {
        vmm::print_message("vmm: error: ");
        vmm::print_message(vmm::kNoMemory);
        vmm::print_message("\n");
        return vmm::kHostFailed;
    } catch (const std::exception& error) {
        vmm::print_message(std::string("vmm: error: ") + error.what() + "\n");
        return vmm::kHostFailed;
    }
}
