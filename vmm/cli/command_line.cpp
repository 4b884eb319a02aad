#include "vmm/cli/command_line.hpp"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cctype>
#include <map>
#include <optional>
#include <sstream>
#include <utility>
#include <vector>

#include "kvm/host/error.hpp"
#include "prefault/host/cpu_list.hpp"
#include "prefault/host/numa.hpp"
#include "vmm/cli/bench_options.hpp"
#include "vmm/cli/config_file.hpp"
#include "vmm/cli/config_schema.hpp"
#include "vmm/cli/device_options.hpp"
#include "vmm/cli/values.hpp"
#include "vmm/machine/x86/cpu_model.hpp"
#include "vmm/version.hpp"

namespace vmm {

namespace {

constexpr int kUsageError = 2;

constexpr const char* kIntroduction = "vmm runs virtual machines on KVM whose memory is populated beforehand: guest "
                                      "memory is pinned, and the second-level\n"
                                      "page table (EPT, NPT) maps all of it before the guest's first instruction, so "
                                      "that the guest takes no second-level\n"
                                      "page fault.";

constexpr const char* kExamples =
    "Examples:\n"
    "  vmm doctor                                 what this host offers\n"
    "  vmm run --prefault=all                     the built-in guest, which measures its first touch of memory\n"
    "  vmm run --prefault=all -m 4G -c 4 vmlinuz --initrd initrd.img --cmdline \"root=/dev/ram0\"\n"
    "  vmm run --prefault=all --report r.json bzImage; jq .guest.second_level_faults_total r.json\n"
    "  vmm bench quick                            what each method of populating costs and saves on this host\n"
    "\n"
    "`vmm run --help` and `vmm bench --help` list every option.";

constexpr const char* kRunNotes =
    "Sizes take K, M, G or T (powers of 1024); a number alone is bytes.\n"
    "At a terminal: Ctrl-A x stops the guest, Ctrl-A h helps, Ctrl-A Ctrl-A sends Ctrl-A.\n"
    "\n"
    "Exit status:\n"
    "  0  the guest powered off or rebooted, or was stopped by Ctrl-A x\n"
    "  1  the host or a file failed, or an option asks for what cannot be\n"
    "  2  the command line was not understood\n"
    "  3  the guest crashed (triple fault, or KVM could not go on); its registers are printed\n"
    "  4  a signal stopped it";

const std::map<std::string, PageSize> kPageSizes{
    {"4K", PageSize::k4K}, {"thp", PageSize::kThp}, {"2M", PageSize::k2M}, {"1G", PageSize::k1G}};
const std::map<std::string, prefault::Scope> kScopes{
    {"none", prefault::Scope::kNone}, {"host", prefault::Scope::kHost}, {"all", prefault::Scope::kAll}};
const std::map<std::string, prefault::Method> kMethods{
    {"auto", prefault::Method::kAuto}, {"touch", prefault::Method::kTouch}, {"ioctl", prefault::Method::kIoctl}};
const std::map<std::string, PrefaultWhen> kWhens{{"before", PrefaultWhen::kBefore},
                                                 {"background", PrefaultWhen::kBackground}};
const std::map<std::string, prefault::Pin> kPins{
    {"none", prefault::Pin::kNone}, {"mlock", prefault::Pin::kMlock}, {"longterm", prefault::Pin::kLongterm}};

const std::map<std::string, bool> kSwitch{{"on", true}, {"off", false}};
const std::map<std::string, HardwareDescription> kHardware{
    {"acpi", HardwareDescription::kAcpi}, {"fdt", HardwareDescription::kFdt}, {"both", HardwareDescription::kBoth}};

/// Takes one of the names in `values`, in any case, and says in the help which there are.
template <typename Value>
CLI::Option* add_choice(CLI::App& app, const std::string& option, Value& target,
                        const std::map<std::string, Value>& values, const std::string& help) {
    std::string names;
    std::string current;
    for (const auto& [name, value] : values) {
        names += (names.empty() ? "" : "|") + name;
        current = value == target ? name : current;
    }
    return app
        .add_option_function<std::string>(
            option, [&target, &values](const std::string& name) { target = values.at(name); }, help)
        ->transform(CLI::IsMember(values, CLI::ignore_case).description(""))
        ->type_name(names)
        ->default_str(current);
}

/// Refuses an empty name, which a script's unset variable leaves.
const CLI::Validator kNotEmpty([](std::string& text) { return text.empty() ? std::string("is empty") : std::string(); },
                               "");

/// What --prefault takes: a scope by name, or the ranges it is about.
void take_prefault(const std::string& text, prefault::Options& options) {
    std::string name = text;
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
    if (const auto scope = kScopes.find(name); scope != kScopes.end()) {
        options.scope = scope->second;
        return;
    }
    auto ranges = parse_ranges(text);
    if (!ranges) {
        throw CLI::ValidationError("--prefault", "'" + text +
                                                     "' is neither none, host or all, nor ranges of guest memory like "
                                                     "0-1G,4G-6G");
    }
    options.scope = prefault::Scope::kAll;
    options.ranges = std::move(*ranges);
}

CLI::Option* add_cpu_list(CLI::App& app, const std::string& option, prefault::CpuList& target,
                          const std::string& help) {
    return app
        .add_option_function<std::string>(
            option,
            [option, &target](const std::string& text) {
                auto cpus = prefault::parse_cpu_list(text);
                if (!cpus) {
                    throw CLI::ValidationError(option, "'" + text + "' is no list of CPUs (0-3,8)");
                }
                target = std::move(*cpus);
            },
            help)
        ->type_name("LIST");
}

/// The form of a device's option in the help.
std::string usage_of(const std::string& option) {
    return std::string(find_device_syntax(std::string_view(option).substr(2))->usage);
}

/// An option with the words of one device.
template <typename Device, typename Parse>
void add_device(CLI::App& run, const std::string& option, std::optional<Device>& device, Parse parse,
                const std::string& help) {
    run.add_option_function<std::string>(
           option,
           [&device, parse, option](const std::string& text) {
               try {
                   device = parse(text);
               } catch (const Error& error) {
                   throw CLI::ValidationError(option, error.what());
               }
           },
           help)
        ->type_name(usage_of(option));
}

/// An option that may be given several times, each time with the words of one device.
template <typename Device, typename Parse>
void add_devices(CLI::App& run, const std::string& option, std::vector<Device>& devices, Parse parse,
                 const std::string& help) {
    run.add_option_function<std::vector<std::string>>(
           option,
           [&devices, parse, option](const std::vector<std::string>& texts) {
               devices.clear();
               for (const std::string& text : texts) {
                   try {
                       devices.push_back(parse(text));
                   } catch (const Error& error) {
                       throw CLI::ValidationError(option, error.what());
                   }
               }
           },
           help)
        ->type_name(usage_of(option))
        ->expected(1)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
        ->allow_extra_args(false);
}

/// Tries the values of a file's member, one by one: a message then names the right line. Throws Error.
void take_from_file(CLI::Option& option, const ConfigFileEntry& entry, const std::string& path) {
    for (std::size_t i = 0; i < entry.values.size(); ++i) {
        try {
            option.clear();
            option.add_result(entry.values[i]);
            option.run_callback();
        } catch (const CLI::ParseError& error) {
            throw Error(config_file_error(path, entry.lines[i]) + error.what());
        }
    }
    try {
        option.clear();
        option.add_result(entry.values);
        option.run_callback();
    } catch (const CLI::ParseError& error) {
        throw Error(config_file_error(path, entry.lines.back()) + error.what());
    }
}

/// Gives the options of `run` what the file at `path` says, where the command line did not say it itself.
void apply_config_file(CLI::App& run, const std::string& path) {
    for (const ConfigFileEntry& entry : read_config_file(path)) {
        CLI::Option* const option = run.get_option_no_throw("--" + entry.option);
        if (option == nullptr || entry.option == "config" || entry.option == "help") {
            throw Error(config_file_error(path, entry.lines.front()) + "there is no option '" + entry.option + "'");
        }
        const auto& excluded = option->get_excludes();
        const bool overridden = option->count() != 0 || std::any_of(excluded.begin(), excluded.end(),
                                                                    [](auto* other) { return other->count() != 0; });
        if (!overridden) {
            take_from_file(*option, entry, path);
        }
    }
}

template <typename Value>
std::vector<std::string> names_of(const std::map<std::string, Value>& values) {
    std::vector<std::string> names;
    for (const auto& [name, value] : values) {
        names.push_back(name);
    }
    return names;
}

/// What the configuration file may say of `option`.
SchemaOption schema_option(const CLI::Option& option) {
    static const std::map<std::string, std::vector<std::string>> choices{
        {"page-size", names_of(kPageSizes)}, {"prefault-method", names_of(kMethods)},
        {"prefault-when", names_of(kWhens)}, {"pin", names_of(kPins)},
        {"nested", names_of(kSwitch)},       {"numa", {"interleave", "split"}}};
    SchemaOption result;
    result.name = option.get_lnames().front();
    result.help = option.get_description();
    result.form = option.get_type_name();
    if (const auto found = choices.find(result.name); found != choices.end()) {
        result.kind = SchemaOption::Kind::kChoice;
        result.choices = found->second;
    } else if (option.get_expected_max() == 0) {
        result.kind = SchemaOption::Kind::kFlag;
    } else if (result.form == "N") {
        result.kind = SchemaOption::Kind::kNumber;
    }
    return result;
}

std::string schema_of(const CLI::App& run) {
    std::vector<SchemaOption> options;
    for (const CLI::Option* const option : run.get_options()) {
        const auto& names = option->get_lnames();
        if (!names.empty() && names.front() != "help" && names.front() != "config") {
            options.push_back(schema_option(*option));
        }
    }
    return config_schema(options);
}

void add_run_options(CLI::App& run, RunCommand& command, std::optional<prefault::Pin>& pin, unsigned& verbosity,
                     bool& quiet) {
    Config& config = command.config;
    run.add_option("KERNEL,--kernel", config.kernel_path,
                   "A bzImage, an ELF vmlinux or any PVH kernel; without it, the built-in guest runs")
        ->type_name("FILE")
        ->check(kNotEmpty);
    run.add_option_function<std::string>(
           "-m,--memory",
           [&config](const std::string& text) {
               const auto size = parse_size(text);
               if (!size) {
                   throw CLI::ValidationError("--memory",
                                              "'" + text + "' is no size (a whole number and K, M, G or T)");
               }
               config.memory_bytes = *size;
           },
           "Memory of the guest")
        ->type_name("SIZE")
        ->default_str("512M");
    run.add_option("-c,--vcpus", config.vcpus, "Virtual CPUs, 1 to 254")
        ->type_name("N")
        ->check(kNotEmpty)
        ->capture_default_str();
    run.add_option_function<std::string>(
           "--cpu",
           [&config](const std::string& text) {
               try {
                   static_cast<void>(CpuModel::parse(text, true)); // --nested may come yet.
               } catch (const Error& error) {
                   throw CLI::ValidationError("--cpu", error.what());
               }
               config.cpu = text;
           },
           "The processor of the guest: the host's, or what processors of a level of x86-64 have in common; with "
           "features taken away, or asked for, by their names in /proc/cpuinfo (docs/cpu.md)")
        ->type_name("host|x86-64-v1|...|x86-64-v4[,-FEATURE][,+FEATURE]...")
        ->check(kNotEmpty)
        ->default_str("host");
    add_choice(run, "--nested", config.nested, kSwitch, "Whether the guest may have guests of its own (VMX, SVM)");
    run.add_option("--initrd", config.initrd_path, "Initial RAM disk")->type_name("FILE")->check(kNotEmpty);
    run.add_option("--cmdline", config.command_line,
                   std::string("Added to the kernel's command line \"") + Config::kDefaultCommandLine + "\"")
        ->type_name("STRING");
    run.add_option_function<std::string>(
           "--prefault", [&config](const std::string& text) { take_prefault(text, config.prefault); },
           "What to populate: nothing, host memory, the second level too, or the latter for parts of guest memory "
           "(0-1G,4G-6G)")
        ->type_name("none|host|all|RANGE,...")
        ->default_str("none");
    add_choice(run, "--prefault-when", config.prefault_when, kWhens,
               "Before the guest starts, or beside it, at low priority");
    add_choice(run, "--prefault-method", config.prefault.method, kMethods,
               "How the second level is filled: by prefault vCPUs that touch memory, by KVM_PRE_FAULT_MEMORY, or what "
               "is best here");
    run.add_option("--prefault-workers", config.prefault.workers, "Threads that populate, and prefault vCPUs")
        ->type_name("N")
        ->check(kNotEmpty)
        ->default_str("the CPUs they may use");
    add_cpu_list(run, "--prefault-cpus", config.prefault.cpus, "CPUs on which they run");
    run.add_flag("--prefault-smm", config.prefault.smm,
                 "Fill the second level of system management mode, too (needs EPT or NPT)");
    add_cpu_list(run, "--vcpu-cpus", config.vcpu_cpus, "CPUs on which the guest's vCPUs run, one after the other");
    auto* const node = run.add_option_function<unsigned>(
                              "--numa-node",
                              [&config](const unsigned& number) {
                                  config.numa = {prefault::NumaPolicy::Kind::kNode, number};
                              },
                              "Guest memory lies on this NUMA node")
                           ->type_name("N")
                           ->check(kNotEmpty);
    run.add_option_function<std::string>(
           "--numa", [&config](const std::string& name) { config.numa = *prefault::parse_numa_policy(name); },
           "Guest memory is spread over the nodes page by page, or split into one part a node, of which the guest is "
           "told")
        ->transform(CLI::IsMember({"interleave", "split"}, CLI::ignore_case).description(""))
        ->type_name("interleave|split")
        ->excludes(node);
    add_choice(run, "--page-size", config.page_size, kPageSizes,
               "Pages behind guest memory; 2M and 1G: huge page pool");
    run.add_option_function<std::string>(
           "--pin", [&pin](const std::string& name) { pin = kPins.at(name); },
           "Guest memory is locked against swapping, or pinned in place against migration, too (io_uring buffers)")
        ->transform(CLI::IsMember(kPins, CLI::ignore_case).description(""))
        ->type_name("none|mlock|longterm")
        ->default_str("mlock when prefaulting, else none");
    run.add_flag("--reserve-hugepages", config.reserve_huge_pages,
                 "Raise the pool of huge pages by what is missing, for this run (needs root)");
    run.add_option("--serial", command.serial, "Where the guest's serial port goes")
        ->type_name("stdio|none|FILE")
        ->check(kNotEmpty)
        ->default_str("stdio");
    run.add_option("--console", command.console,
                   "Where a virtio console (hvc0) goes; on stdio, the serial port is then off")
        ->type_name("stdio|none|FILE")
        ->check(kNotEmpty)
        ->default_str("none");
    add_devices(run, "--disk", config.disks, parse_disk_option,
                "A raw disk image or block device, as a virtio block device; a comma in PATH is written twice");
    add_devices(run, "--net", config.nets, parse_net_option,
                "A network interface: on a tap interface of the host's, or in user mode, through the program passt, "
                "with ports of the host's that lead to the guest (docs/devices.md)");
    add_device(run, "--vsock", config.vsock, parse_vsock_option,
               "Stream sockets between guest and host, over the unix socket PATH (docs/devices.md)");
    add_device(run, "--balloon", config.balloon, parse_balloon_option,
               "Ask the guest to do without so much of its memory, and with `reporting` for what is free: both go back "
               "to the host (not with --prefault or --pin)");
    run.add_flag("--rng", config.rng, "Give the guest a source of entropy");
    add_choice(run, "--hardware", config.hardware, kHardware,
               "What tells the guest of its hardware: ACPI tables or a device tree (docs/devices.md)");
    run.add_option("--dump-dtb", command.dump_dtb,
                   "Write the device tree that the guest would get, and do not run it; without --hardware, that of fdt")
        ->type_name("FILE")
        ->check(kNotEmpty);
    run.add_option("--report", command.report, "Write what happened as JSON (docs/report.md)")
        ->type_name("FILE")
        ->check(kNotEmpty);
    run.add_flag("--watch", command.watch, "Say once a second what KVM has mapped, and the new faults of each vCPU");
    run.add_flag("-v,--verbose", verbosity, "Say more; twice: everything");
    run.add_option("--config", command.config_file,
                   "Read options from a JSON file (docs/config.md); those given here "
                   "count more")
        ->type_name("FILE")
        ->check(kNotEmpty);
    run.add_flag("-q,--quiet", quiet, "Say nothing but errors");
    run.add_option("--log-file", command.log_file, "Log there, too")->type_name("FILE")->check(kNotEmpty);
    run.footer(kRunNotes);
}

LogLevel log_level(unsigned verbosity, bool quiet) {
    if (quiet) {
        return LogLevel::kError;
    }
    return verbosity == 0 ? LogLevel::kWarning : verbosity == 1 ? LogLevel::kInfo : LogLevel::kDebug;
}

/// What may quote what a user or a file said: on one line, of a length that can be read, and nothing in it that a
/// terminal would obey.
std::string on_one_line(const std::string& text) {
    constexpr std::size_t kMostBytes = 2000;
    constexpr std::string_view kDigits = "0123456789abcdef";
    std::string line;
    for (const char c : std::string_view(text).substr(0, kMostBytes)) {
        const auto value = static_cast<unsigned char>(c);
        if (value < ' ' || value == 0x7f) {
            line += {'\\', 'x', kDigits[value >> 4U], kDigits[value & 0xfU]};
        } else {
            line += c;
        }
    }
    return text.size() > kMostBytes ? line + "..." : line;
}

TextCommand usage_error(const CLI::App& app, const std::string& what) {
    const auto subcommands = app.get_subcommands();
    const std::string command = subcommands.empty() ? "vmm" : "vmm " + subcommands.front()->get_name();
    return {"vmm: error: " + on_one_line(what) + " (see `" + command + " --help`)\n", kUsageError};
}

/// Whether a command is for users: one without a group is in no help.
bool is_shown(const CLI::App* command) {
    return !command->get_group().empty();
}

/// What is wrong with a command line. Where no command was found, the word that stands in its place is the answer.
std::string describe_parse_error(const CLI::App& app, const CLI::ParseError& error) {
    const std::vector<std::string> strange = app.remaining();
    if (!app.get_subcommands().empty() || strange.empty()) {
        return error.what();
    }
    std::string commands;
    for (const CLI::App* const command : app.get_subcommands(is_shown)) {
        commands += (commands.empty() ? "" : " or ") + command->get_name();
    }
    return "'" + strange.front() + "' is no command: it is " + commands;
}

void prepare(CLI::App& app) {
    app.set_version_flag("--version", std::string("vmm ") + kVersion);
    app.require_subcommand(1);
    app.footer(kExamples);
    app.get_formatter()->column_width(36);
}

struct Commands {
    CLI::App* run;
    const CLI::App* doctor;
    const CLI::App* schema;
    const CLI::App* bench;
    const CLI::App* compare;
};

/// What the options say goes here.
struct Said {
    RunCommand run;
    std::optional<prefault::Pin> pin;
    unsigned verbosity = 0;
    bool quiet = false;
    BenchCommand bench;
    BenchCompareCommand compare;
};

/// `into` outlives `app`.
Commands add_commands(CLI::App& app, Said& into) {
    into.run.serial = "stdio";
    CLI::App* const run = app.add_subcommand("run", "Run a guest");
    add_run_options(*run, into.run, into.pin, into.verbosity, into.quiet);
    const CLI::App* const doctor =
        app.add_subcommand("doctor", "Say what this host offers; status 1 if no guest can run");
    const CLI::App* const schema =
        app.add_subcommand("config-schema", "Print the schema of the configuration file")->group("");
    CLI::App* const bench = app.add_subcommand("bench", "Measure what populating memory costs and saves");
    const CLI::App* const compare = add_bench_options(*bench, into.bench, into.compare);
    return {run, doctor, schema, bench, compare};
}

CommandText describe(const CLI::App& app) {
    CommandText text{app.get_name(), app.get_description(), {}, app.get_footer()};
    for (const CLI::Option* const option : app.get_options()) {
        OptionText described;
        for (const std::string& name : option->get_snames()) {
            described.names.push_back("-" + name);
        }
        for (const std::string& name : option->get_lnames()) {
            described.names.push_back("--" + name);
        }
        if (option->get_positional()) {
            described.names.push_back(option->get_name(true, false));
        }
        if (option->get_expected_max() != 0 && option->get_type_size_max() != 0) {
            described.value = option->get_type_name();
        }
        described.help = option->get_description();
        described.standard = option->get_default_str();
        text.options.push_back(std::move(described));
    }
    return text;
}

} // namespace

std::vector<CommandText> describe_commands() {
    CLI::App app(kIntroduction, "vmm");
    prepare(app);
    Said said;
    add_commands(app, said);
    std::vector<CommandText> commands{describe(app)};
    for (const CLI::App* const command : app.get_subcommands(is_shown)) {
        commands.push_back(describe(*command));
    }
    return commands;
}

Command parse_command_line(int argc, const char* const* argv) {
    CLI::App app(kIntroduction, "vmm");
    prepare(app);

    Said into;
    RunCommand& run_command = into.run;
    run_command.config.prefault.workers = 0; // As many as there are CPUs for them; known when all is read.
    const auto [run, doctor, schema, bench, compare] = add_commands(app, into);

    try {
        app.parse(argc, argv);
        if (!run_command.config_file.empty()) {
            apply_config_file(*run, run_command.config_file);
        }
    } catch (const CLI::Success& success) { // help or version
        std::ostringstream text;
        app.exit(success, text, text);
        return TextCommand{text.str(), 0};
    } catch (const CLI::ParseError& error) {
        return usage_error(app, describe_parse_error(app, error));
    } catch (const Error& error) { // Of a file, of which the help says nothing.
        return TextCommand{"vmm: error: " + on_one_line(error.what()) + "\n", kUsageError};
    }
    if (doctor->parsed()) {
        return DoctorCommand{};
    }
    if (schema->parsed()) {
        return TextCommand{schema_of(*run), 0};
    }
    if (compare->parsed()) {
        return into.compare;
    }
    if (bench->parsed()) {
        return into.bench;
    }
    if (into.quiet && into.verbosity != 0) {
        return usage_error(app, "--quiet and --verbose exclude each other");
    }
    prefault::Options& prefault = run_command.config.prefault;
    run_command.config.pin =
        into.pin.value_or(prefault.scope == prefault::Scope::kNone ? prefault::Pin::kNone : prefault::Pin::kMlock);
    if (run_command.config.prefault.workers == 0 && run->count("--prefault-workers") == 0) {
        const std::size_t cpus = prefault.cpus.empty() ? prefault::usable_cpu_list().size() : prefault.cpus.size();
        prefault.workers = static_cast<unsigned>(std::clamp<std::size_t>(cpus, 1, Config::kMaxPrefaultWorkers));
    }
    if (run_command.console == "stdio" && run_command.serial == "stdio") {
        if (run->count("--serial") != 0) {
            return usage_error(app, "--serial and --console cannot both be on stdio");
        }
        run_command.serial = "none";
    }
    if (run_command.console != "none") {
        run_command.config.console.emplace(); // What it is connected to comes later; that there is one counts now.
    }
    try {
        static_cast<void>(CpuModel::parse(run_command.config.cpu, run_command.config.nested));
        validate_balloon(run_command.config);
    } catch (const Error& error) {
        return usage_error(app, error.what());
    }
    if (!run_command.dump_dtb.empty()) {
        if (!run_command.report.empty()) {
            return usage_error(app, "--report and --dump-dtb exclude each other: no guest runs");
        }
        if (run->count("--hardware") == 0) {
            run_command.config.hardware = HardwareDescription::kFdt;
        } else if (run_command.config.hardware == HardwareDescription::kAcpi) {
            return usage_error(app, "with --hardware=acpi there is no device tree for --dump-dtb to write: take fdt or "
                                    "both");
        }
    }
    run_command.log_level = log_level(into.verbosity, into.quiet);
    run_command.summary = !into.quiet;
    return run_command;
}

} // namespace vmm
