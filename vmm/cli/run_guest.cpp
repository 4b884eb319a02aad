#include "vmm/cli/run_guest.hpp"

#include <malloc.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdlib>
#include <exception>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/process_memory.hpp"
#include "kvm/host/stopwatch.hpp"
#include "vmm/cli/broken_memory.hpp"
#include "vmm/cli/character_connection.hpp"
#include "vmm/cli/messages.hpp"
#include "vmm/cli/option_names.hpp"
#include "vmm/cli/progress_line.hpp"
#include "vmm/cli/sandbox_alarm.hpp"
#include "vmm/cli/snapshot_signal.hpp"
#include "vmm/cli/terminal.hpp"
#include "vmm/cli/window_size.hpp"
#include "vmm/control/service.hpp"
#include "vmm/control/socket.hpp"
#include "vmm/limits.hpp"
#include "vmm/machine.hpp"
#include "vmm/machine/stop_bridge.hpp"
#include "vmm/migration/tls_helper.hpp"
#include "vmm/output/file_roles.hpp"
#include "vmm/output/report_file.hpp"
#include "vmm/output/stop_on_signals.hpp"
#include "vmm/sandbox/process_sandbox.hpp"
#include "vmm/state/snapshot_files.hpp"
#include "vmm/state/snapshot_writer.hpp"
#include "vmm/watch.hpp"

namespace vmm {

namespace {

using exit_codes::kGuestFailed;
using exit_codes::kHostFailed;
using exit_codes::kStoppedBySignal;
using exit_codes::kSuccess;

/// How long the end waits for a reader that takes nothing.
constexpr std::chrono::milliseconds kMessagePatience{2000};

int exit_code(ExitReason reason) {
    switch (reason) {
    case ExitReason::kPowerOff:
    case ExitReason::kReboot:
    case ExitReason::kStopped:
    case ExitReason::kMigrated:
        return kSuccess;
    case ExitReason::kCrash:
    case ExitReason::kSandbox:
        return kGuestFailed;
    case ExitReason::kSignal:
        return kStoppedBySignal;
    }
    return kHostFailed;
}

/// Throws Error if a file has two roles, before any file is opened for writing.
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
    if (config.restore) {
        for (const char* const name : {snapshot_files::kState, snapshot_files::kMemory, snapshot_files::kConfig}) {
            add(Use::kRead, "--restore", config.restore->path + "/" + name);
        }
    }
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
    add(Use::kWrite, "--api", command.api);
}

/// Shows the progress of the prefault: by a bar on a terminal, which is removed at its end, else in the log. If the
/// guest runs meanwhile, the log is used, because the terminal belongs to the guest.
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

/// Runs the prefault before the guest starts. Returns whether the second level is full.
bool prefault_before(Machine& machine, const Config& config) {
    const prefault::Report report = machine.prefault();
    if (report.scope == prefault::Scope::kAll) {
        config.log(LogLevel::kInfo,
                   vmm::format("prefault: method {} ({})", to_string(report.method), report.method_reason));
        if (!report.complete && !machine.is_stop_requested()) {
            config.log(LogLevel::kWarning,
                       "the second level is not complete, and the guest will take faults: " + report.problem);
        }
    }
    return report.scope == prefault::Scope::kAll && report.complete && report.ranges.empty();
}

/// `when_full` is called if the second level is full before the guest starts.
ExitReason run_machine(Machine& machine, const Config& config, ProgressDisplay& progress,
                       const std::function<void()>& when_full) {
    if (config.incoming) { // its memory was populated before its state came
        const prefault::Report& filled = machine.report().prefault;
        if (filled.scope == prefault::Scope::kAll && filled.complete && filled.ranges.empty()) {
            when_full();
        }
    } else if (config.prefault_when == PrefaultWhen::kBefore && prefault_before(machine, config)) {
        when_full();
    }
    progress.close();
    std::optional<RawTerminal> terminal;
    for (const CharacterConfig& port : {config.serial, config.console.value_or(CharacterConfig{})}) {
        if (port.escape_keys) { // at most one of them has the terminal
            terminal.emplace(port.input_fd);
        }
    }
    return machine.run();
}

/// The facts about a run that are kept when its machine is gone.
struct Ending {
    ExitReason reason = ExitReason::kStopped;
    RunReport report;
    std::string crash;
};

/// The control of a run, if it has one. The socket exists from the beginning on, and the service while there is a
/// machine.
class RunControl {
  public:
    /// Makes the socket; from then on clients wait. Throws Error.
    RunControl(const RunCommand& command, Messages& messages)
        : messages_(messages), given_(command.given), given_of_machine_(command.given_of_machine),
          stop_(command.config.stop) {
        if (!command.api.empty()) {
            socket_.emplace(command.api,
                            [&messages](const std::string& line) { messages.log(LogLevel::kWarning, line); });
        } else if (command.api_fd) {
            socket_.emplace(static_cast<int>(*command.api_fd));
        } else if (const auto inherited = control::inherited_socket()) {
            socket_.emplace(*inherited);
        }
    }

    /// Sets the callbacks in `config` that report events. This object must outlive the machine that is made from it.
    void listen_to(Config& config) {
        config.started = [this] {
            tell([](control::MachineControl& control) { control.note_started(); });
            if (const std::string problem = control::notify_supervisor("READY=1"); !problem.empty()) {
                messages_.log(LogLevel::kWarning, problem);
            }
            release_program_pages(); // most code that has run until now, and its memory, is not used again
            static_cast<void>(::malloc_trim(0));
        };
        config.filled = [this] { tell([](control::MachineControl& control) { control.note_full(); }); };
        config.ended = [this](ExitReason reason) {
            tell([reason](control::MachineControl& control) { control.note_ended(reason); });
        };
        config.kept = [this, before = std::move(config.kept)](const prefault::KeptEvent& event) {
            if (before) {
                before(event);
            }
            tell([&event](control::MachineControl& control) { control.note_kept(event); });
        };
    }

    /// Serves `machine` until the returned object is destroyed.
    [[nodiscard]] std::shared_ptr<void> serve(Machine& machine, const Config& config) {
        if (!socket_) {
            return nullptr;
        }
        control::Surroundings surroundings;
        surroundings.options = given_;
        surroundings.machine_options = given_of_machine_;
        surroundings.stop = stop_;
        surroundings.log_level = [this] { return messages_.log_level(); };
        surroundings.set_log_level = [this](LogLevel level) { messages_.set_log_level(level); };
        surroundings.words = with_option_names;
        service_.emplace(*socket_, machine, config, std::move(surroundings));
        return {this, [](RunControl* self) { self->service_.reset(); }};
    }

    /// Reports that the second level is full before the guest starts.
    void note_full() {
        tell([](control::MachineControl& control) { control.note_full(); });
    }

  private:
    template <typename Tell>
    void tell(Tell what) {
        if (service_) {
            what(service_->control());
        }
    }

    Messages& messages_;
    std::string given_;
    std::string given_of_machine_;
    std::shared_ptr<const StopRequest> stop_;
    std::optional<control::ListeningSocket> socket_;
    std::optional<control::Service> service_; ///< changes only while nothing of the machine runs
};

/// Saves the machine when a signal comes, if the command asks for that.
class Checkpoint {
  public:
    /// All arguments must outlive it. `signal` is null if the command does not ask for this.
    Checkpoint(const RunCommand& command, const SnapshotSignal* signal, Messages& messages)
        : signal_(signal), messages_(messages), summary_(command.summary) {
        if (command.snapshot_on) {
            options_.directory = command.snapshot_on->directory;
            options_.config = command.given_of_machine;
        }
    }

    /// Sets the callback in `config` that reports the guest's start. This object must outlive the machine that is made
    /// from it.
    void listen_to(Config& config) {
        if (signal_ == nullptr) {
            return;
        }
        config.started = [this, before = std::move(config.started)] {
            if (before) {
                before();
            }
            on_signal_->note_started();
        };
    }

    /// Watches for the signal until the returned object is destroyed.
    [[nodiscard]] std::shared_ptr<void> watch(Machine& machine) {
        if (signal_ == nullptr) {
            return nullptr;
        }
        on_signal_.emplace(
            machine, *signal_, options_,
            SnapshotOnSignal::Words{[this](std::string_view text) {
                                        if (summary_) {
                                            messages_.say(text);
                                        }
                                    },
                                    [this](std::string_view error) { messages_.say_error(with_option_names(error)); }});
        return {this, [](Checkpoint* self) { self->on_signal_.reset(); }};
    }

  private:
    const SnapshotSignal* signal_;
    Messages& messages_;
    bool summary_;
    SnapshotOptions options_;
    std::optional<SnapshotOnSignal> on_signal_; ///< changes only while nothing of the machine runs
};

/// Gives the process the lowest priority. Freeing memory takes much processor time, and a guest that has gone to
/// another process of this host needs that time more.
void give_way_to_guest_elsewhere() noexcept {
    constexpr int kLeast = 19;
    static_cast<void>(::setpriority(PRIO_PROCESS, 0, kLeast)); // if this fails, the guest is only slower
}

Ending run_to_the_end(const Config& config, std::chrono::steady_clock::time_point started,
                      std::initializer_list<const CharacterConnection*> connections, ProgressDisplay& progress,
                      RunControl& control, Checkpoint& checkpoint, ProcessSandbox& sandbox,
                      const std::function<void(const RunReport&)>& before_teardown) {
    Ending ending;
    {
        Machine machine(config, started);
        if (config.vsock) {
            sandbox.add_socket(config.vsock->path);
        }
        control::connect_supervisor();
        sandbox.confine(); // everything is open now, and later threads inherit this
        const std::shared_ptr<void> served = control.serve(machine, config);
        const std::shared_ptr<void> watched = checkpoint.watch(machine);
        const BrokenMemoryReport broken_memory(machine.memory());
        for (const CharacterConnection* const connection : connections) {
            if (connection->file) { // the disks are locked now, so this file is none of them
                connection->file->empty();
                connection->file->keep();
            }
        }
        ending.reason = run_machine(machine, config, progress, [&control] { control.note_full(); });
        if (ending.reason == ExitReason::kMigrated) {
            give_way_to_guest_elsewhere();
        }
        ending.report = machine.report();
        ending.report.prefault.problem = with_option_names(ending.report.prefault.problem);
        if (ending.report.kept) {
            ending.report.kept->problem = with_option_names(ending.report.kept->problem);
        }
        ending.crash = machine.crash_description();
        if (ending.reason == ExitReason::kSignal) {
            before_teardown(ending.report);
        }
    }
    ending.report.teardown_seconds = seconds_since(ending.report.guest_ended);
    return ending;
}

void warn_of_background_prefault(const Ending& ending, const Config& config) {
    const prefault::Report& report = ending.report.prefault;
    if (config.prefault_when == PrefaultWhen::kBackground && !report.problem.empty()) {
        config.log(LogLevel::kError, "the prefault in the background did not come to its end: " + report.problem);
    }
}

/// Makes the machine without running it, for `--dump-dtb`.
int write_device_tree(ReportFile& file, const Config& config, std::chrono::steady_clock::time_point started,
                      const WritePatience& patience) {
    const Machine machine(config, started);
    const auto tree = machine.device_tree();
    // chars may alias any bytes.
    file.write({reinterpret_cast<const char*>(tree.data()), tree.size()}, patience);
    return kSuccess;
}

/// Runs a guest and prints everything about the run.
int run(RunCommand& command, const StopOnSignals& signals, const SnapshotSignal* snapshot_signal, Messages& messages,
        ProcessSandbox& sandbox, std::chrono::steady_clock::time_point started) {
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
    RunControl control(command, messages);
    Config& config = command.config;
    config.log = [&messages](LogLevel level, std::string_view line) { messages.log(level, line); };
    CharacterConnection serial;
    config.serial = connect_characters(command.serial, "serial", serial, signals.fd(), messages);
    CharacterConnection console;
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
    if (config.prefault_keep && command.summary) {
        config.kept = [&messages](const prefault::KeptEvent& event) {
            messages.say(with_option_names(prefault::to_line(event)) + "\n");
        };
    }
    ProgressDisplay progress(command, config.log, messages);
    config.prefault.progress = [&progress](const prefault::Progress& now) { progress.show(now); };

    if (device_tree_file) {
        return write_device_tree(*device_tree_file, config, started, patience);
    }
    control.listen_to(config);
    Checkpoint checkpoint(command, snapshot_signal, messages);
    checkpoint.listen_to(config);
    std::optional<SandboxAlarm> alarm;
    if (config.sandbox != SandboxMode::kOff) {
        messages.prepare_for_sandbox();
        alarm.emplace(*config.stop, [&messages](std::string_view error) { messages.say_error(error); });
    }
    // The sender of the signal may kill this process soon, and freeing much memory takes long. Therefore the report is
    // written before that.
    const auto report_early = [&](const RunReport& report) {
        if (report_file && report_file->is_replaced_by_writing()) {
            try {
                report_file->write(to_json(report), patience);
            } catch (const Error& error) { // the report is written again below, and a failure is an error there
                config.log(LogLevel::kWarning, error.what());
            }
        }
    };
    const Ending ending =
        run_to_the_end(config, started, {&serial, &console}, progress, control, checkpoint, sandbox, report_early);
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

/// The broker writes the file `report` for the process.
void let_write_report(BrokerRules& broker, const std::string& report) {
    // The file reserves room for the report from the start on. That room may be gone when the guest has run.
    const auto kept = std::make_shared<std::optional<ReportFile>>();
    broker.prepare = [kept, report] {
        std::error_code unknown;
        const auto kind = std::filesystem::status(report, unknown).type();
        if (kind != std::filesystem::file_type::regular && kind != std::filesystem::file_type::not_found) {
            return; // the process itself writes to it
        }
        try {
            kept->emplace(report);
        } catch (const std::exception&) { // the process itself reports this, or it works at the end
        }
    };
    broker.write_output = [kept, report](std::string_view path, std::string_view text) {
        try {
            if (path != report) {
                return std::string("cannot write to a place that is not that of the report");
            }
            if (!*kept) {
                kept->emplace(report);
            }
            (*kept)->write(text, {});
            return std::string();
        } catch (const std::exception& error) {
            return std::string(error.what());
        }
    };
}

/// The descriptors that the options name, which the jail leaves open.
std::vector<int> descriptors_of(const RunCommand& command) {
    std::vector<int> descriptors;
    if (command.api_fd) {
        descriptors.push_back(static_cast<int>(*command.api_fd));
    }
    for (const std::string* const path : {&command.log_file, &command.serial, &command.console, &command.report}) {
        if (const auto fd = named_descriptor(*path)) {
            descriptors.push_back(*fd);
        }
    }
    return descriptors;
}

/// The files and connections that the process needs after its machine has been made.
ProcessSandbox::Settings settings_of_sandbox(const RunCommand& command) {
    ProcessSandbox::Settings settings;
    const Config& config = command.config;
    const bool has_control = !command.api.empty() || command.api_fd || std::getenv("LISTEN_FDS") != nullptr;
    settings.needs.network = has_control || command.incoming;
    settings.pages_arrive = command.incoming.has_value();
    settings.stays_dumpable =
        (restores_lazily(config) || command.incoming) && (::geteuid() != 0 || command.jail.has_value());
    settings.lowers_pools = config.reserve_huge_pages;
    BrokerRules& broker = settings.broker;
    for (const std::string* const path : {&command.log_file, &command.serial, &command.console}) {
        if (!path->empty() && *path != "stdio" && *path != "none") {
            broker.outputs.push_back(*path);
        }
    }
    if (!command.api.empty()) {
        broker.sockets.push_back(command.api);
    }
    if (command.incoming && !command.incoming->address.path.empty()) {
        broker.sockets.push_back(command.incoming->address.path);
    }
    broker.snapshots = has_control || command.snapshot_on;
    if (command.jail) {
        settings.jail = command.jail;
        if (::geteuid() == 0) {
            broker.user = command.jail->user;
            broker.group = command.jail->group;
        }
        settings.kept = descriptors_of(command);
    }
    if (config.restore) {
        broker.working_set = config.restore->path;
    }
    if (settings.needs.network) {
        try {
            broker.programs.push_back({tls_program().string(), {"listen", "connect"}, 4});
        } catch (const Error&) { // if TLS is asked for, an error says that it is missing
        }
        broker.programs.push_back({"getent", {"ahosts"}, 3});
    }
    if (!command.report.empty()) {
        let_write_report(broker, command.report);
    }
    return settings;
}

/// Waits for the guest that is to arrive, and changes `command` to that of its machine. Throws Error, and StoppedError.
void wait_for_guest(RunCommand& command, const StopRequest& stop, Messages& messages) {
    const auto guest = std::make_shared<IncomingGuest>(
        *command.incoming, [&messages](LogLevel level, std::string_view line) { messages.log(level, line); });
    if (command.summary) {
        messages.say("vmm: a guest can come to " + to_string(guest->address()) + "\n");
    }
    if (const std::string problem = control::notify_supervisor("READY=1"); !problem.empty()) {
        messages.log(LogLevel::kWarning, problem);
    }
    const StopBridge bridge(stop);
    guest->wait(bridge.token());
    try {
        auto completed = command.completed(guest->config());
        if (const auto* const text = std::get_if<TextCommand>(&completed)) {
            throw Error("cannot configure the machine as the source's: " + text->text);
        }
        command = std::get<RunCommand>(std::move(completed));
        command.config.incoming = guest;
        validate(command.config);
    } catch (const Error& error) {
        guest->refuse(error.what());
        throw;
    }
}

} // namespace

int run_guest(RunCommand command, std::chrono::steady_clock::time_point started) {
    std::optional<SnapshotSignal> snapshot_signal; // the signal may come from now on
    if (command.snapshot_on) {
        snapshot_signal.emplace(command.snapshot_on->signal);
        SnapshotWriter::check_place(command.snapshot_on->directory);
    }
    if (!command.incoming) {
        validate(command.config); // nothing is opened before this, so a refusal leaves nothing behind
    }
    if (command.jail && command.dump_dtb.empty()) {
        check_jail(*command.jail);
        if (const auto inherited = control::inherited_socket(); inherited && command.api.empty() && !command.api_fd) {
            command.api_fd = static_cast<unsigned>(*inherited); // LISTEN_PID is the id of this process
        }
    }
    ProcessSandbox::Settings settings = settings_of_sandbox(command);
    if (snapshot_signal) {
        settings.kept.push_back(snapshot_signal->arrived().fd());
    }
    ProcessSandbox sandbox(command.dump_dtb.empty() ? command.config.sandbox : SandboxMode::kOff, std::move(settings));
    const auto stop = std::make_shared<StopRequest>();
    const StopOnSignals signals(*stop); // it lives as long as there is something to give back
    Messages messages;
    int status = kHostFailed;
    try {
        if (command.incoming) {
            wait_for_guest(command, *stop, messages);
            started = std::chrono::steady_clock::now();
        }
        command.config.stop = stop;
        status = run(command, signals, snapshot_signal ? &*snapshot_signal : nullptr, messages, sandbox, started);
    } catch (const std::bad_alloc&) {
        messages.say_error(kNoMemory);
    } catch (const std::exception& error) {
        if (dynamic_cast<const Error*>(&error) != nullptr && stop->is_requested_for(ExitReason::kSignal)) {
            status = kStoppedBySignal; // the stop came during construction, which then throws
        } else {
            messages.say_error(error.what());
        }
    }
    messages.end({.quiet = kMessagePatience, .hurry_fd = signals.fd()});
    return status;
}

} // namespace vmm
