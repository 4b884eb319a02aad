#include "vmm/cli/run_options.hpp"

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <utility>

#include "kvm/host/error.hpp"
#include "prefault/host/cpu_list.hpp"
#include "prefault/host/numa.hpp"
#include "vmm/cli/device_options.hpp"
#include "vmm/cli/given.hpp"
#include "vmm/cli/values.hpp"
#include "vmm/machine/x86/cpu_model.hpp"

namespace vmm {

namespace {

using prefault::NumaPolicy;
using Words = std::vector<std::string>;

constexpr std::uint64_t kMostDescriptor = std::numeric_limits<int>::max();

/// An option that is switched by the words "on" and "off".
Option on_off(std::string names, std::string help, bool standard, std::function<void(Given&, bool)> set) {
    Option option{.names = std::move(names), .help = std::move(help)};
    option.value = {.kind = OptionValue::Kind::kChoice, .choices = {"on", "off"}};
    option.value.form = form_of(option.value.choices);
    option.standard = standard ? "on" : "off";
    option.take = [set = std::move(set), choices = option.value.choices](Given& given, const Words& words) {
        set(given, pick_choice(words.back(), choices) == 0);
    };
    return option;
}

Option cpu_list(std::string names, std::string help, std::function<void(Given&, prefault::CpuList)> set) {
    OptionValue value{.kind = OptionValue::Kind::kText, .form = "LIST"};
    value.pattern = "^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$";
    value.may_be_number = true;
    value.may_be_empty = true; // parse_cpu_list() refuses it with a better message
    return text(std::move(names), std::move(value), std::move(help),
                [set = std::move(set)](Given& given, const std::string& word) {
                    auto cpus = prefault::parse_cpu_list(word);
                    if (!cpus) {
                        throw Error("'" + word + "' is no list of CPUs (0-3,8)");
                    }
                    set(given, std::move(*cpus));
                });
}

/// An option that describes one device, or several if its syntax says so.
template <typename Device>
Option device(const std::string& name, std::string help, Device (*parse)(const std::string&),
              std::function<void(Given&, std::vector<Device>)> set) {
    const DeviceSyntax& syntax = *find_device_syntax(name);
    Option option{.names = "--" + name, .help = std::move(help)};
    option.value = {.kind = OptionValue::Kind::kDevice, .form = syntax.usage};
    option.value.is_file = !syntax.words.empty() && syntax.words.front().name == "path";
    option.is_repeated = syntax.is_repeated;
    option.take = [parse, set = std::move(set)](Given& given, const Words& words) {
        std::vector<Device> devices;
        for (const std::string& word : words) {
            devices.push_back(parse(word));
        }
        set(given, std::move(devices));
    };
    return option;
}

/// Takes a scope by name, or the ranges to be populated. Throws Error.
void take_prefault(const std::string& word, prefault::Options& options) {
    if (const auto scope = find_choice(word, names_of(prefault::kScopes))) {
        options.scope = prefault::kScopes.at(*scope);
        return;
    }
    auto ranges = parse_ranges(word);
    if (!ranges) {
        throw Error("'" + word + "' is neither " + listed(names_of(prefault::kScopes)) +
                    ", nor ranges of guest memory like 0-1G,4G-6G");
    }
    options.scope = prefault::Scope::kAll;
    options.ranges = std::move(*ranges);
}

Option memory_option() {
    OptionValue value{.kind = OptionValue::Kind::kText, .form = "SIZE[,max=SIZE]"};
    value.pattern = "^" + std::string(kSizePattern) + "(,max=" + std::string(kSizePattern) + ")?$";
    value.may_be_number = true;
    return text("-m,--memory", std::move(value),
                "Memory of the guest; and how much it can be given while it runs, by `vmm ctl SOCKET memory SIZE` "
                "(docs/devices.md)",
                [](Given& given, const std::string& word) {
                    const std::size_t comma = word.find(",max=");
                    const auto size = parse_size(word.substr(0, comma));
                    const auto most = comma == std::string::npos ? std::optional<std::uint64_t>(0)
                                                                 : parse_size(word.substr(comma + 5));
                    if (!size || !most) {
                        throw Error("'" + word +
                                    "' is no size (a whole number and K, M, G or T), nor a size and "
                                    "',max=' and another size");
                    }
                    given.run.config.memory_bytes = *size;
                    given.run.config.memory_max_bytes = *most;
                })
        .setting("memory_bytes")
        .with_standard(size_text(Config{}.memory_bytes));
}

Option cpu_option() {
    OptionValue value{.kind = OptionValue::Kind::kText,
                      .form = "host|x86-64-v1|...|x86-64-v4[,-FEATURE][,+FEATURE]..."};
    for (const std::string_view base : cpu_base_names()) {
        value.choices.emplace_back(base);
    }
    value.pattern = "^(" + form_of(value.choices) + ")(,[-+][a-z0-9_]+)*$";
    return text("--cpu", std::move(value),
                "The processor of the guest: the host's, or what processors of a level of x86-64 have in common; with "
                "features taken away, or asked for, by their names in /proc/cpuinfo (docs/cpu.md)",
                [](Given& given, const std::string& word) {
                    static_cast<void>(CpuModel::parse(word, true)); // --nested may follow
                    given.run.config.cpu = word;
                })
        .with_standard(Config{}.cpu);
}

std::vector<Option> guest_options() {
    constexpr Limits kVcpus{1, Config::kMaxVcpus};
    OptionValue command_line{.kind = OptionValue::Kind::kText, .form = "STRING"};
    command_line.may_be_empty = true;
    command_line.may_be_number = true;
    return {
        file("KERNEL,--kernel", "A bzImage, an ELF vmlinux or any PVH kernel; without it, the built-in guest runs",
             [](Given& given, const std::string& path) { given.run.config.kernel_path = path; })
            .only_in({Place::kRun, Place::kFile}),
        memory_option(),
        number("-c,--vcpus", kVcpus, "Virtual CPUs, " + to_string(kVcpus),
               [](Given& given, unsigned vcpus) { given.run.config.vcpus = vcpus; })
            .with_standard(std::to_string(Config{}.vcpus)),
        cpu_option(),
        on_off("--nested", "Whether the guest may have guests of its own (VMX, SVM)", Config{}.nested,
               [](Given& given, bool nested) { given.run.config.nested = nested; })
            .setting("nested"),
        file("--initrd", "Initial RAM disk",
             [](Given& given, const std::string& path) { given.run.config.initrd_path = path; })
            .only_in({Place::kRun, Place::kFile}),
        text("--cmdline", std::move(command_line),
             std::string("Added to the kernel's command line \"") + Config::kDefaultCommandLine + "\"",
             [](Given& given, const std::string& words) { given.run.config.command_line = words; })
            .only_in({Place::kRun, Place::kFile}),
    };
}

Option prefault_option() {
    OptionValue value{.kind = OptionValue::Kind::kText, .choices = names_of(prefault::kScopes)};
    value.form = form_of(value.choices, "RANGE,...");
    const std::string address = "(0[xX][0-9a-fA-F]+|" + std::string(kSizePattern) + ")";
    const std::string range = address + "-" + address;
    value.pattern = "^(" + form_of(value.choices) + "|" + range + "(," + range + ")*)$";
    value.may_be_empty = true; // take_prefault() refuses it with a better message
    return text("--prefault", std::move(value),
                "What to populate: nothing, host memory, the second level too, or the latter for parts of guest memory "
                "(0-1G,4G-6G)",
                [](Given& given, const std::string& word) { take_prefault(word, given.run.config.prefault); })
        .setting("prefault.scope")
        .with_standard(std::string(to_string(Config{}.prefault.scope)));
}

std::vector<Option> prefault_options() {
    return {
        prefault_option(),
        choice<PrefaultWhen>("--prefault-when", {PrefaultWhen::kBefore, PrefaultWhen::kBackground},
                             "Before the guest starts, or beside it, at low priority",
                             [](Given& given, PrefaultWhen when) { given.run.config.prefault_when = when; })
            .setting("prefault_when")
            .with_standard(std::string(to_string(Config{}.prefault_when))),
        choice<prefault::Method>("--prefault-method", {prefault::kMethods.begin(), prefault::kMethods.end()},
                                 "How the second level is filled: by prefault vCPUs that touch memory, by "
                                 "KVM_PRE_FAULT_MEMORY, by both (for a host that is itself a guest), or what is best "
                                 "here",
                                 [](Given& given, auto method) { given.run.config.prefault.method = method; })
            .setting("prefault.method")
            .with_standard(std::string(to_string(Config{}.prefault.method))),
        number("--prefault-workers", {1, Config::kMaxPrefaultWorkers}, "Threads that populate, and prefault vCPUs",
               [](Given& given, unsigned workers) {
                   // The largest number would mean one worker for each CPU. It is no valid number of workers, either.
                   given.run.config.prefault.workers = std::min(workers, prefault::kWorkerPerCpu - 1);
               })
            .setting("prefault.workers")
            .with_standard("the CPUs they may use"),
        cpu_list("--prefault-cpus", "CPUs on which they run",
                 [](Given& given, prefault::CpuList cpus) { given.run.config.prefault.cpus = std::move(cpus); })
            .setting("prefault.cpus"),
        flag("--prefault-smm", "Fill the second level of system management mode, too (needs EPT or NPT)",
             [](Given& given, bool smm) { given.run.config.prefault.smm = smm; })
            .setting("prefault.smm"),
        flag("--prefault-keep",
             "Keep the second level full while the guest runs: notice what the kernel takes away, say so, and populate "
             "it again (with --prefault=all)",
             [](Given& given, bool keep) { given.run.config.prefault_keep = keep; })
            .setting("prefault_keep"),
        number("--keep-every", {Config::kMinKeepEveryMs, Config::kMaxKeepEveryMs},
               "Milliseconds between two looks of --prefault-keep, " +
                   to_string(Limits{Config::kMinKeepEveryMs, Config::kMaxKeepEveryMs}),
               [](Given& given, unsigned every_ms) { given.keep_every_ms = every_ms; })
            .setting("keep_every_ms")
            .with_standard(std::to_string(Config{}.keep_every_ms)),
    };
}

std::vector<Option> placement_options() {
    return {
        cpu_list("--vcpu-cpus", "CPUs on which the guest's vCPUs run, one after the other",
                 [](Given& given, prefault::CpuList cpus) { given.run.config.vcpu_cpus = std::move(cpus); })
            .setting("vcpu_cpus"),
        cpu_list("--device-cpus", "CPUs on which the threads of devices run",
                 [](Given& given, prefault::CpuList cpus) { given.run.config.device_cpus = std::move(cpus); })
            .setting("device_cpus"),
        number("--numa-node", {0, prefault::kMaxNodes - 1}, "Guest memory lies on this NUMA node",
               [](Given& given, unsigned node) {
                   given.run.config.numa = {NumaPolicy::Kind::kNode, node};
               })
            .setting("numa.node"),
        choice<NumaPolicy>("--numa", {NumaPolicy{NumaPolicy::Kind::kInterleave}, NumaPolicy{NumaPolicy::Kind::kSplit}},
                           "Guest memory is spread over the nodes page by page, or split into one part a node, of "
                           "which the guest is told",
                           [](Given& given, NumaPolicy numa) { given.run.config.numa = numa; })
            .setting("numa")
            .excluding("--numa-node"),
        choice<PageSize>("--page-size", {kPageSizes.begin(), kPageSizes.end()},
                         "Pages behind guest memory; 2M and 1G: huge page pool",
                         [](Given& given, PageSize size) { given.run.config.page_size = size; })
            .setting("page_size")
            .with_standard(std::string(to_string(Config{}.page_size))),
        device<MemoryFrom>(
            "memory-from",
            "Take guest memory out of a pool of warm memory (`vmm pool`), whose pages are of --page-size: what is left "
            "of "
            "a prefault is then the second level; with `fallback`, what the pool has not is ordinary memory",
            parse_memory_from_option,
            [](Given& given, const std::vector<MemoryFrom>& one) { given.run.config.memory_from = one.back(); })
            .setting("memory_from"),
        flag("--memory-shared",
             "Guest memory is a file in memory, which another vmm of this host can take over without a copy "
             "(docs/migration.md)",
             [](Given& given, bool shared) { given.run.config.memory_shared = shared; })
            .setting("memory_shared"),
        choice<prefault::Pin>("--pin",
                              {prefault::kPins.begin(), std::ranges::find(prefault::kPins, prefault::Pin::kAuto)},
                              "Guest memory is locked against swapping, or pinned in place against migration, too "
                              "(io_uring buffers)",
                              [](Given& given, prefault::Pin pin) { given.run.config.pin = pin; })
            .setting("pin")
            .with_standard("mlock when prefaulting, else none"),
        flag("--reserve-hugepages", "Raise the pool of huge pages by what is missing, for this run (needs root)",
             [](Given& given, bool reserve) { given.run.config.reserve_huge_pages = reserve; })
            .setting("reserve_huge_pages"),
    };
}

std::vector<Option> device_options() {
    return {
        file("--serial", "Where the guest's serial port goes",
             [](Given& given, const std::string& where) { given.serial = where; }, {"stdio", "none"})
            .with_standard(RunCommand{}.serial),
        file("--console", "Where a virtio console (hvc0) goes; on stdio, the serial port is then off",
             [](Given& given, const std::string& where) { given.run.console = where; }, {"stdio", "none"})
            .with_standard(RunCommand{}.console),
        device<DiskConfig>(
            "disk", "A raw disk image or block device, as a virtio block device; a comma in PATH is written twice",
            parse_disk_option,
            [](Given& given, std::vector<DiskConfig> disks) { given.run.config.disks = std::move(disks); })
            .setting("disks"),
        device<NetConfig>("net",
                          "A network interface: on a tap interface of the host's, or in user mode, through the program "
                          "passt, with ports of the host's that lead to the guest (docs/devices.md)",
                          parse_net_option,
                          [](Given& given, std::vector<NetConfig> nets) { given.run.config.nets = std::move(nets); })
            .setting("nets"),
        device<VsockConfig>(
            "vsock", "Stream sockets between guest and host, over the unix socket PATH (docs/devices.md)",
            parse_vsock_option,
            [](Given& given, const std::vector<VsockConfig>& one) { given.run.config.vsock = one.back(); })
            .setting("vsock"),
        device<BalloonConfig>(
            "balloon",
            "Ask the guest to do without so much of its memory, and with `reporting` for what is free: both go back to "
            "the host (not with --prefault or --pin)",
            parse_balloon_option,
            [](Given& given, const std::vector<BalloonConfig>& one) { given.run.config.balloon = one.back(); })
            .setting("balloon"),
        flag("--rng", "Give the guest a source of entropy", [](Given& given, bool rng) { given.run.config.rng = rng; }),
        choice<HardwareDescription>(
            "--hardware", {HardwareDescription::kAcpi, HardwareDescription::kFdt, HardwareDescription::kBoth},
            "What tells the guest of its hardware: ACPI tables or a device tree (docs/devices.md)",
            [](Given& given, HardwareDescription hardware) { given.hardware = hardware; })
            .setting("hardware")
            .with_standard(std::string(to_string(Config{}.hardware))),
        choice<VirtioTransport>(
            "--transport", {VirtioTransport::kMmio, VirtioTransport::kPci},
            "How the guest reaches its virtio devices: by registers in memory, or on a PCI bus (docs/devices.md)",
            [](Given& given, VirtioTransport transport) { given.run.config.transport = transport; })
            .setting("transport")
            .with_standard(std::string(to_string(Config{}.transport))),
    };
}

std::vector<Option> restore_options() {
    return {
        file("--restore",
             "Go on from this snapshot, a directory, instead of booting a kernel; what is not said here is as it was "
             "when it was taken (docs/snapshots.md)",
             [](Given& given, const std::string& path) { given.restore = path; })
            .setting("restore")
            .only_in({Place::kRun}),
        choice<RestoreMode>("--restore-mode", {kRestoreModes.begin(), kRestoreModes.end()},
                            "How its memory becomes the guest's: all of it is read; or pages are mapped, and copied "
                            "when they are written; or it is read while the guest runs, what is touched first",
                            [](Given& given, RestoreMode mode) { given.restore_mode = mode; })
            .setting("restore.mode")
            .with_standard(std::string(to_string(RestoreFrom{}.mode)))
            .only_in({Place::kRun}),
        choice<RestoreClock>("--restore-clock", {RestoreClock::kStopped, RestoreClock::kRealtime},
                             "What the guest's clocks show then: that no time has passed, or the host's",
                             [](Given& given, RestoreClock clock) { given.restore_clock = clock; })
            .setting("restore.clock")
            .with_standard(std::string(to_string(RestoreFrom{}.clock)))
            .only_in({Place::kRun}),
        number(
            "--record-working-set", {1, static_cast<unsigned>(RestoreFrom::kLongestRecord.count())},
            "With --restore-mode=lazy: for so many milliseconds read only what is touched, and keep with the snapshot "
            "what that was: later restores read it first",
            [](Given& given, unsigned milliseconds) { given.record_working_set_ms = milliseconds; })
            .setting("restore.record_working_set")
            .only_in({Place::kRun}),
    };
}

/// Throws Error.
SnapshotOn parse_snapshot_on(const std::string& word) {
    constexpr std::array kSignals{std::pair("SIGUSR1", SIGUSR1), std::pair("SIGUSR2", SIGUSR2)};
    const std::size_t colon = std::min(word.find(':'), word.size());
    const auto* const found = std::ranges::find(kSignals, word.substr(0, colon), &std::pair<const char*, int>::first);
    if (found == kSignals.end()) {
        throw Error("'" + word.substr(0, colon) + "' is neither SIGUSR1 nor SIGUSR2: say SIGUSR1:DIR");
    }
    if (colon + 1 >= word.size()) {
        throw Error("'" + word + "' names no directory: say " + found->first + ":DIR");
    }
    return {found->second, word.substr(colon + 1)};
}

std::vector<Option> signal_options() {
    OptionValue value{.kind = OptionValue::Kind::kText, .form = "SIGUSR1|SIGUSR2:DIR"};
    value.pattern = "^SIGUSR[12]:.+$";
    return {
        text("--snapshot-on", std::move(value),
             "When this signal comes, save the machine in DIR, which is made then, and end: `vmm run --restore DIR` "
             "goes "
             "on (docs/fleet.md)",
             [](Given& given, const std::string& word) { given.run.snapshot_on = parse_snapshot_on(word); }),
    };
}

std::vector<Option> incoming_options() {
    OptionValue address{.kind = OptionValue::Kind::kText, .form = "unix:PATH|tcp:HOST:PORT"};
    return {
        text("--incoming", std::move(address),
             "Wait there for a guest that another vmm sends by `vmm ctl SOCKET migrate`, and go on with it; what is "
             "not said here is as it was there (docs/migration.md)",
             [](Given& given, const std::string& word) {
                 static_cast<void>(MigrationAddress::parse(word));
                 given.incoming = word;
             })
            .setting("incoming")
            .excluding("--restore")
            .only_in({Place::kRun}),
        file("--tls",
             "With --incoming: a directory with ca-cert.pem, server-cert.pem and server-key.pem; both ends prove who "
             "they are",
             [](Given& given, const std::string& path) { given.tls = path; })
            .setting("incoming.security.tls_directory")
            .only_in({Place::kRun}),
        flag("--insecure",
             "With --incoming: let a guest come from another host without TLS, although whoever is in between can read "
             "and change it",
             [](Given& given, bool insecure) { given.insecure = insecure; })
            .setting("incoming.security.insecure")
            .only_in({Place::kRun}),
    };
}

std::vector<Option> confinement_options() {
    return {
        choice<SandboxMode>(
            "--sandbox", {SandboxMode::kOff, SandboxMode::kLog, SandboxMode::kOn},
            "Confine the process, and most of all the threads that a guest can reach: a system call that one of them "
            "never needs ends the run, or is logged by the kernel (docs/threat-model.md)",
            [](Given& given, SandboxMode mode) { given.sandbox = mode; })
            .setting("sandbox")
            .with_standard(std::string(to_string(kStandardSandbox))),
        file("--jail",
             "Take the host's files, processes and network from the guest's process: that empty directory becomes its "
             "root (docs/threat-model.md)",
             [](Given& given, const std::string& path) { given.run.jail_or_new().directory = path; }),
        number("--uid", {}, "With --jail: the user that the guest's process becomes; needed as root, and only then",
               [](Given& given, unsigned user) { given.run.jail_or_new().user = user; }),
        number("--gid", {}, "With --jail: its group",
               [](Given& given, unsigned group) { given.run.jail_or_new().group = group; }),
        file("--cgroup", "With --jail: the directory of a control group that the process joins",
             [](Given& given, const std::string& path) { given.run.jail_or_new().cgroup = path; }),
        text("--netns", {.kind = OptionValue::Kind::kText, .form = "NAME"},
             "With --jail: the network namespace it goes to, of those of `ip netns`, instead of a new one",
             [](Given& given, const std::string& name) { given.run.jail_or_new().net_namespace = name; }),
    };
}

std::vector<Option> control_socket_options() {
    return {
        file("--api",
             "Serve a control socket there: status, pause, stop and more, by HTTP and `vmm ctl` (docs/control.md)",
             [](Given& given, const std::string& path) { given.run.api = path; }),
        number("--api-fd", {0, kMostDescriptor},
               "Serve it on a unix socket that listens already, inherited as this descriptor (by itself if there is "
               "one by LISTEN_FDS)",
               [](Given& given, unsigned fd) { given.run.api_fd = fd; })
            .only_in({Place::kRun}),
    };
}

std::vector<Option> output_options() {
    Option verbose{.names = "-v,--verbose", .help = "Say more; twice: everything"};
    verbose.take_count = [](Given& given, std::int64_t count) {
        given.verbosity = count > 0 ? static_cast<unsigned>(count) : 0;
    };
    verbose.is_repeated = true;
    return {
        file("--dump-dtb",
             "Write the device tree that the guest would get, and do not run it; without --hardware, that of fdt",
             [](Given& given, const std::string& path) { given.run.dump_dtb = path; }),
        file("--report", "Write what happened as JSON (docs/report.md)",
             [](Given& given, const std::string& path) { given.run.report = path; }),
        flag("--watch", "Say once a second what KVM has mapped, and the new faults of each vCPU",
             [](Given& given, bool watch) { given.run.watch = watch; }),
        verbose,
        file("--config", "Read options from a JSON file (docs/config.md); those given here count more",
             [](Given& given, const std::string& path) { given.run.config_file = path; })
            .only_in({Place::kRun}),
        flag("-q,--quiet", "Say nothing but errors", [](Given& given, bool quiet) { given.quiet = quiet; }),
        file("--log-file", "Log there, too", [](Given& given, const std::string& path) { given.run.log_file = path; }),
    };
}

} // namespace

std::vector<Option> run_options() {
    std::vector<Option> rows;
    const auto add = [&rows](std::vector<Option> part, const std::vector<Place>& places) {
        for (Option& row : part) {
            if (row.places.empty()) {
                row.places = places;
            }
            rows.push_back(std::move(row));
        }
    };
    const std::vector<Place> of_machine{Place::kRun, Place::kFile, Place::kSnapshot};
    const std::vector<Place> of_run{Place::kRun, Place::kFile};
    add(guest_options(), of_machine);
    add(restore_options(), of_run);
    add(signal_options(), of_run);
    add(incoming_options(), of_run);
    add(prefault_options(), of_machine);
    add(placement_options(), of_machine);
    add(device_options(), of_machine);
    add(confinement_options(), of_run);
    add(control_socket_options(), of_run);
    add(output_options(), of_run);
    return rows;
}

} // namespace vmm
