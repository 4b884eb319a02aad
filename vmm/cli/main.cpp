// The program `vmm`.

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <exception>
#include <new>
#include <string>
#include <variant>

#include "vmm/bench/command.hpp"
#include "vmm/bench/migrate_command.hpp"
#include "vmm/bench/state_command.hpp"
#include "vmm/cli/command_line.hpp"
#include "vmm/cli/doctor.hpp"
#include "vmm/cli/option_names.hpp"
#include "vmm/cli/run_control.hpp"
#include "vmm/cli/run_guest.hpp"
#include "vmm/cli/run_pool.hpp"
#include "vmm/cli/run_snapshot.hpp"
#include "vmm/host/process_limits.hpp"
#include "vmm/limits.hpp"
#include "vmm/output/patient_write.hpp"
#include "vmm/output/stop_on_signals.hpp"

namespace vmm {

namespace {

using exit_codes::kHostFailed;
using exit_codes::kStoppedBySignal;
using exit_codes::kSuccess;

int execute(const RunCommand& command, std::chrono::steady_clock::time_point started) {
    return run_guest(command, started);
}

int execute(const ControlCommand& command, std::chrono::steady_clock::time_point /*started*/) {
    return run_control(command);
}

int execute(const SnapshotCommand& command, std::chrono::steady_clock::time_point /*started*/) {
    return run_snapshot(command);
}

int execute(const PoolCommand& command, std::chrono::steady_clock::time_point /*started*/) {
    return run_pool(command);
}

int execute(const DoctorCommand& /*command*/, std::chrono::steady_clock::time_point /*started*/) {
    const auto findings = examine_host();
    const bool printed = print_result(to_text(findings));
    return printed && can_run_guests(findings) ? kSuccess : kHostFailed;
}

int execute(const BenchCommand& command, std::chrono::steady_clock::time_point /*started*/) {
    BenchCommand in_words = command;
    in_words.words = with_option_names;
    return run_bench(in_words);
}

int execute(const BenchStateCommand& command, std::chrono::steady_clock::time_point /*started*/) {
    return run_bench_state(command);
}

int execute(const BenchMigrateCommand& command, std::chrono::steady_clock::time_point /*started*/) {
    return run_bench_migrate(command);
}

int execute(const BenchMergeCommand& command, std::chrono::steady_clock::time_point /*started*/) {
    return run_bench_merge(command);
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
    // If a standard descriptor is closed, the next file would get its number, and would be written to by mistake.
    for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
        if (::fcntl(fd, F_GETFD) < 0) {
            [[maybe_unused]] const int lowest = ::open("/dev/null", O_RDWR);
        }
    }
    // If a reader goes away, a write fails without a signal, and the guest goes on.
    std::signal(SIGPIPE, SIG_IGN);
    std::signal(SIGXFSZ, SIG_IGN);
    // This is for the time until a machine or a benchmark has something to give back.
    const vmm::ExitOnSignals exit_on_signals(vmm::kStoppedBySignal);
    vmm::raise_open_file_limit();
    vmm::make_room_for_descriptors();
    try {
        const vmm::Command command = vmm::parse_command_line(argc, argv);
        return std::visit([&](const auto& chosen) { return vmm::execute(chosen, started); }, command);
    } catch (const std::bad_alloc&) {
        vmm::print_message("vmm: error: ");
        vmm::print_message(vmm::kNoMemory);
        vmm::print_message("\n");
        return vmm::kHostFailed;
    } catch (const std::exception& error) {
        vmm::print_message("vmm: error: " + vmm::with_option_names(error.what()) + "\n");
        return vmm::kHostFailed;
    }
}
