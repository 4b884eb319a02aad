#include "vmm/cli/bench_options.hpp"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "vmm/bench/cell.hpp"
#include "vmm/cli/values.hpp"
#include "vmm/config.hpp"

namespace vmm {

namespace {

constexpr const char* kNotes =
    "Lists have commas: --memory 256M,1G --vcpus 1,2,4. Every combination is measured, each run in a process of its\n"
    "own, round by round over all combinations. Huge pages that the pool lacks are added for the time of the "
    "benchmark\n"
    "(needs root). docs/bench.md describes figures, files and presets.\n"
    "\n"
    "Presets (options given beside them count more):\n"
    "  quick    64M or 128M by every method, in less than a minute\n"
    "  rfc      32 vCPUs and 64 GiB scaled to this host; with --full, as they are\n"
    "  scale    memory doubling, workers doubling, and the costs for a GiB and for a fault fitted to them\n"
    "\n"
    "Exit status: 0; 1 if something could not be measured, or compare finds something worse; 2 if the command line "
    "was\n"
    "not understood; 4 if a signal stopped it, with what was done by then printed and written.";

std::vector<std::string> split(const std::string& text) {
    std::vector<std::string> items;
    for (std::size_t start = 0; start <= text.size();) {
        const std::size_t comma = std::min(text.find(',', start), text.size());
        items.push_back(text.substr(start, comma - start));
        start = comma + 1;
    }
    return items;
}

/// An option whose value is a list; `parse` gives an optional for each item.
template <typename Value, typename Parse>
CLI::Option* add_list(CLI::App& app, const std::string& option, std::vector<Value>& target, Parse parse,
                      const std::string& what, const std::string& help) {
    return app
        .add_option_function<std::string>(
            option,
            [option, &target, parse, what](const std::string& text) {
                target.clear();
                for (const std::string& item : split(text)) {
                    const auto value = parse(item);
                    if (!value) {
                        throw CLI::ValidationError(option, "'" + item + "' is " + what);
                    }
                    if (std::find(target.begin(), target.end(), *value) == target.end()) {
                        target.push_back(*value);
                    }
                }
            },
            help)
        ->type_name("LIST");
}

std::optional<unsigned> parse_count(const std::string& text, unsigned most) {
    if (text.empty() || text.size() > 6 ||
        !std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; })) {
        return std::nullopt;
    }
    const unsigned long value = std::stoul(text);
    return value >= 1 && value <= most ? std::optional(static_cast<unsigned>(value)) : std::nullopt;
}

/// A memory size a guest can have, in whole MiB.
std::optional<std::uint64_t> parse_memory(const std::string& text) {
    const auto size = parse_size(text);
    return size && *size >= 16 * kMiB && *size % (2 * kMiB) == 0 ? size : std::nullopt;
}

void add_matrix_options(CLI::App& bench, bench::Matrix& matrix) {
    add_list(bench, "-m,--memory", matrix.memory_bytes, parse_memory,
             "no size of at least 16M, in steps of 2M (a whole number and K, M, G or T)", "Memory of the guest");
    add_list(
        bench, "-c,--vcpus", matrix.vcpus, [](const std::string& text) { return parse_count(text, Config::kMaxVcpus); },
        "not a number from 1 to 254", "Virtual CPUs");
    add_list(
        bench, "--workers", matrix.workers,
        [](const std::string& text) { return parse_count(text, Config::kMaxPrefaultWorkers); },
        "not a number from 1 to 512", "Prefault workers, and QEMU's prealloc-threads (default: the CPUs)");
    add_list(
        bench, "--page-size", matrix.page_sizes, [](const std::string& text) { return bench::parse_page_size(text); },
        "not one of 4K, thp, 2M, 1G", "Pages behind guest memory");
    add_list(
        bench, "--prefault", matrix.methods, [](const std::string& text) { return bench::parse_method(text); },
        "not one of none, host, touch, ioctl, reader",
        "Methods: none, host, touch, ioctl, reader (none; one vCPU reads every page first)");
    matrix.orders.clear();
    add_list(
        bench, "--order", matrix.orders, [](const std::string& text) { return bench::parse_order(text); },
        "not seq or random", "In which order a vCPU visits its pages: seq, random (default: seq)");
}

} // namespace

CLI::App* add_bench_options(CLI::App& bench, BenchCommand& command, BenchCompareCommand& compare) {
    static const std::map<std::string, bench::Preset> kPresets{
        {"quick", bench::Preset::kQuick}, {"rfc", bench::Preset::kRfc}, {"scale", bench::Preset::kScale}};
    const CLI::Validator not_empty(
        [](std::string& text) { return text.empty() ? std::string("is empty") : std::string(); }, "");
    bench
        .add_option_function<std::string>(
            "PRESET",
            [&command](const std::string& name) {
                const auto preset = kPresets.find(name);
                if (preset == kPresets.end()) {
                    throw CLI::ValidationError("PRESET", "'" + name + "' is none of quick, rfc, scale, nor compare");
                }
                command.preset = preset->second;
            },
            "What to measure where the options do not say")
        ->type_name("quick|rfc|scale");
    add_matrix_options(bench, command.matrix);
    bench
        .add_option_function<unsigned>(
            "--runs", [&command](const unsigned& runs) { command.runs = runs; }, "Runs of each combination")
        ->check(CLI::Range(1U, BenchCommand::kMaxRuns).description(""))
        ->type_name("N")
        ->default_str("5");
    bench.add_option("--passes", command.settings.passes, "Passes of the guest over its memory")
        ->check(CLI::Range(2U, 1000U).description(""))
        ->type_name("N")
        ->capture_default_str();
    bench.add_flag("--warm,!--no-warm", command.warm,
                   "Populate as much memory before each run (default), or measure it as it is");
    bench.add_flag("--full", command.full, "The preset at its full size");
    bench.add_flag("--model", command.model, "Print what 64 GiB, 1 TiB and 16 TiB would take, from the costs measured");
    bench
        .add_option_function<double>(
            "--time-limit", [&command](const double& limit) { command.time_limit_seconds = limit; },
            "Begin no further round of runs that would end later")
        ->check(CLI::Range(1.0, 1e7).description(""))
        ->type_name("SECONDS");
    bench
        .add_option_function<double>(
            "--timeout", [&command](const double& limit) { command.timeout_seconds = limit; },
            "End a run that takes longer; it has failed")
        ->check(CLI::Range(1.0, 1e6).description(""))
        ->type_name("SECONDS")
        ->default_str("600");
    bench.add_option("--json", command.json, "Write everything as JSON")->type_name("FILE")->check(not_empty);
    bench.add_option("--csv", command.csv, "Write every run as CSV")->type_name("FILE")->check(not_empty);
    bench.add_option("--plot", command.plot, "Draw a picture, .svg or .png (needs gnuplot)")
        ->type_name("FILE")
        ->check(not_empty);
    bench
        .add_option_function<std::string>(
            "--against",
            [&command](const std::string& text) {
                if (text == "qemu") {
                    command.matrix.qemu = true;
                } else {
                    command.matrix.command = true;
                    command.settings.command = text;
                }
            },
            "Run the same guest on QEMU, with prealloc and without; or by a shell command with " +
                std::string(bench::kTemplateNames) + ", whose output is the guest's serial port")
        ->type_name("qemu|CMD")
        ->trigger_on_parse()
        ->check(not_empty);
    bench.add_option("--qemu", command.settings.qemu, "QEMU's program")->type_name("FILE")->check(not_empty);
    bench.add_option("--qemu-machine", command.settings.qemu_machine, "QEMU's -M")->type_name("NAME")->check(not_empty);
    bench.footer(kNotes);

    CLI::App* const sub = bench.add_subcommand("compare", "Say what changed beyond noise between two files of --json; "
                                                          "status 1 if something got worse");
    sub->add_option("BEFORE", compare.before, "A file of --json")->required()->check(not_empty)->type_name("FILE");
    sub->add_option("AFTER", compare.after, "Another one")->required()->check(not_empty)->type_name("FILE");
    sub->add_option_function<double>(
           "--threshold", [&compare](const double& percent) { compare.threshold = percent / 100; },
           "What counts as a change, in percent")
        ->check(CLI::Range(0.0, 10000.0).description(""))
        ->type_name("PERCENT")
        ->default_str("10");
    return sub;
}

} // namespace vmm
