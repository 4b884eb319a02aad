#include "vmm/cli/given.hpp"

#include <utility>

#include "kvm/host/error.hpp"
#include "vmm/machine/x86/cpu_model.hpp"

namespace vmm {

namespace {

LogLevel log_level(const Given& given) {
    if (given.quiet) {
        return LogLevel::kError;
    }
    switch (given.verbosity) {
    case 0:
        return LogLevel::kWarning;
    case 1:
        return LogLevel::kInfo;
    default:
        return LogLevel::kDebug;
    }
}

/// Connects the serial port or the console to standard input and output; only one of them can have it. Throws Error.
void connect_stdio(const Given& given, RunCommand& run) {
    run.serial = given.serial.value_or(run.serial);
    if (run.console == "stdio" && run.serial == "stdio") {
        if (given.serial) {
            throw Error("--serial and --console cannot both be on stdio");
        }
        run.serial = "none";
    }
    if (run.console != "none") {
        run.config.console.emplace(); // its descriptors are set later; from here on it counts as a device
    }
}

/// Throws Error.
void choose_hardware_description(const Given& given, RunCommand& run) {
    run.config.hardware = given.hardware.value_or(run.config.hardware);
    if (run.dump_dtb.empty()) {
        return;
    }
    if (!run.report.empty()) {
        throw Error("--report and --dump-dtb exclude each other: no guest runs");
    }
    if (!given.hardware) {
        run.config.hardware = HardwareDescription::kFdt;
    } else if (*given.hardware == HardwareDescription::kAcpi) {
        throw Error("with --hardware=acpi there is no device tree for --dump-dtb to write: take fdt or both");
    }
}

/// Throws Error.
void choose_keeper(const Given& given, RunCommand& run) {
    if (given.keep_every_ms && !run.config.prefault_keep) {
        throw Error("--keep-every says how often --prefault-keep looks: give that, too");
    }
    run.config.keep_every_ms = given.keep_every_ms.value_or(run.config.keep_every_ms);
}

/// Throws Error.
void choose_restore(const Given& given, RunCommand& run) {
    if (given.restore.empty()) {
        if (given.restore_mode || given.restore_clock || given.record_working_set_ms != 0) {
            throw Error(
                "--restore-mode, --restore-clock and --record-working-set say how --restore goes on: give that, "
                "too");
        }
        return;
    }
    if (!run.dump_dtb.empty()) {
        throw Error("--restore and --dump-dtb exclude each other: a guest that goes on has its device tree already");
    }
    RestoreFrom& restore = run.config.restore.emplace();
    restore.path = given.restore;
    restore.mode = given.restore_mode.value_or(restore.mode);
    restore.clock = given.restore_clock.value_or(restore.clock);
    restore.record_working_set = std::chrono::milliseconds(given.record_working_set_ms);
    restore.check();
}

/// Throws Error.
void choose_incoming(const Given& given, RunCommand& run) {
    if (given.incoming.empty()) {
        if (!given.tls.empty() || given.insecure) {
            throw Error("--tls and --insecure say how a guest may come that --incoming waits for: give that, too");
        }
        return;
    }
    if (!run.dump_dtb.empty()) {
        throw Error("--incoming and --dump-dtb exclude each other: a guest that arrives has its device tree already");
    }
    IncomingGuest::Options& incoming = run.incoming.emplace();
    incoming.address = MigrationAddress::parse(given.incoming);
    incoming.security = {.tls_directory = given.tls, .insecure = given.insecure};
    incoming.security.check(incoming.address, true);
}

/// Throws Error if the options for a jail do not fit the others.
void check_jail_options(const RunCommand& run) {
    if (!run.jail) {
        return;
    }
    if (run.jail->directory.empty()) {
        throw Error("--uid, --gid, --cgroup and --netns are for --jail: name an empty directory with it");
    }
    if (run.config.sandbox != SandboxMode::kOn) {
        throw Error("--jail takes --sandbox on: a process that is not confined would leave it");
    }
    if (run.config.vsock) {
        throw Error("--jail and --vsock exclude each other: a guest's connections go to sockets by their names, and in "
                    "a jail there are none");
    }
    if (run.incoming) {
        throw Error("--jail and --incoming exclude each other: what the guest needs is known only when it has come");
    }
    if (run.config.reserve_huge_pages) {
        throw Error("--jail and --reserve-hugepages exclude each other: in a jail the pools cannot be lowered again "
                    "(raise them before)");
    }
}

} // namespace

RunCommand run_command_of(const Given& given) {
    if (given.quiet && given.verbosity != 0) {
        throw Error("--quiet and --verbose exclude each other");
    }
    RunCommand run = given.run;
    run.config.sandbox = given.sandbox.value_or(kStandardSandbox);
    choose_restore(given, run);
    choose_incoming(given, run);
    run.config = resolved(std::move(run.config));
    connect_stdio(given, run);
    static_cast<void>(CpuModel::parse(run.config.cpu, run.config.nested));
    validate_balloon(run.config);
    choose_hardware_description(given, run);
    choose_keeper(given, run);
    if (!run.api.empty() && run.api_fd) {
        throw Error("--api and --api-fd exclude each other: there is one control socket");
    }
    if (run.snapshot_on && !run.dump_dtb.empty()) {
        throw Error("--snapshot-on and --dump-dtb exclude each other: no guest runs");
    }
    check_jail_options(run);
    run.log_level = log_level(given);
    run.summary = !given.quiet;
    return run;
}

} // namespace vmm
