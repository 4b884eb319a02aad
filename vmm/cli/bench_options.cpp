#include "vmm/cli/bench_options.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <functional>
#include <optional>
#include <string>
#include <system_error>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/text.hpp"
#include "vmm/bench/cell.hpp"
#include "vmm/bench/results.hpp"
#include "vmm/bench/share.hpp"
#include "vmm/cli/command_rows.hpp"
#include "vmm/cli/given.hpp"
#include "vmm/cli/values.hpp"
#include "vmm/migration.hpp"

namespace vmm {

namespace {

using Words = std::vector<std::string>;

constexpr std::uint64_t kMinMemoryBytes = 16 * kMiB;
constexpr std::uint64_t kMemoryStepBytes = 2 * kMiB;

std::string format_number(double number) {
    return vmm::format("{}", number);
}

/// A positive number without a sign, in decimal. Returns nothing if it is no such number, or is beyond `limits`.
std::optional<unsigned> parse_count(const std::string& word, Limits limits) {
    unsigned value = 0;
    const char* const end = word.data() + word.size();
    const auto [rest, error] = std::from_chars(word.data(), end, value);
    return error == std::errc{} && rest == end && value >= limits.least && value <= limits.most ? std::optional(value)
                                                                                                : std::nullopt;
}

/// Parses a memory size that a guest can have here.
std::optional<std::uint64_t> parse_memory(const std::string& word) {
    const auto size = parse_size(word);
    return size && *size >= kMinMemoryBytes && *size % kMemoryStepBytes == 0 ? size : std::nullopt;
}

/// Completes "'x' is ..." for a text that is no such size.
std::string no_memory_size() {
    return "no size of at least " + size_text(kMinMemoryBytes) + ", in steps of " + size_text(kMemoryStepBytes) +
           " (a whole number and K, M, G or T)";
}

/// An option that takes items between commas. `what` completes "'x' is ...". `set` is called with each item once.
template <typename Value>
Option list(std::string names, std::function<std::optional<Value>(const std::string&)> parse, std::string what,
            std::string help, std::function<void(Given&, std::vector<Value>)> set) {
    OptionValue value{.kind = OptionValue::Kind::kText, .form = "LIST"};
    value.may_be_empty = true; // `parse` refuses an empty item
    return text(std::move(names), std::move(value), std::move(help),
                [parse = std::move(parse), what = std::move(what), set = std::move(set)](Given& given,
                                                                                         const std::string& word) {
                    std::vector<Value> values;
                    for (const std::string& item : split(word, ',')) {
                        const auto parsed = parse(item);
                        if (!parsed) {
                            throw Error("'" + item + "' is " + what);
                        }
                        if (std::ranges::find(values, *parsed) == values.end()) {
                            values.push_back(*parsed);
                        }
                    }
                    set(given, std::move(values));
                });
}

Option count_list(std::string names, Limits limits, std::string help,
                  std::function<void(Given&, std::vector<unsigned>)> set) {
    return list<unsigned>(
        std::move(names), [limits](const std::string& item) { return parse_count(item, limits); },
        "not a number from " + to_string(limits), std::move(help), std::move(set));
}

/// An option whose items are names of `values`.
template <typename Value, std::size_t size>
Option choice_list(std::string names, const std::array<Value, size>& values, std::string help,
                   std::type_identity_t<std::function<void(Given&, std::vector<Value>)>> set) {
    const std::vector<std::string> choices = names_of(values);
    Option option = list<Value>(
        std::move(names),
        [choices, values](const std::string& item) {
            const auto found = std::ranges::find(choices, item);
            return found != choices.end() ? std::optional(values.at(static_cast<std::size_t>(found - choices.begin())))
                                          : std::nullopt;
        },
        "not one of " + joined(choices), std::move(help), std::move(set));
    option.value.choices = choices;
    return option;
}

Option count(std::string names, Limits limits, std::string help, std::function<void(Given&, unsigned)> set) {
    Option option{.names = std::move(names), .help = std::move(help)};
    option.value = {.kind = OptionValue::Kind::kNumber, .form = "N", .limits = limits};
    option.take = [limits, set = std::move(set)](Given& given, const Words& words) {
        const auto value = parse_count(words.back(), limits);
        if (!value) {
            throw Error("'" + words.back() + "' is not a number from " + to_string(limits));
        }
        set(given, *value);
    };
    return option;
}

/// An option that takes a number, which may be a fraction.
Option quantity(std::string names, std::string form, double least, double most, std::string help,
                std::function<void(Given&, double)> set) {
    return text(std::move(names), {.kind = OptionValue::Kind::kText, .form = std::move(form)}, std::move(help),
                [least, most, set = std::move(set)](Given& given, const std::string& word) {
                    double value = 0;
                    const char* const end = word.data() + word.size();
                    const auto [rest, error] = std::from_chars(word.data(), end, value);
                    if (error != std::errc{} || rest != end || !(value >= least && value <= most)) {
                        throw Error("'" + word + "' is not a number from " + format_number(least) + " to " +
                                    format_number(most));
                    }
                    set(given, value);
                });
}

Option preset_option() {
    static constexpr std::array kPresets{bench::Preset::kQuick, bench::Preset::kRfc, bench::Preset::kScale};
    OptionValue value{.kind = OptionValue::Kind::kText, .choices = names_of(kPresets)};
    value.form = form_of(value.choices);
    return text("PRESET", std::move(value), "What to measure where the options do not say",
                [](Given& given, const std::string& word) {
                    const auto names = names_of(kPresets);
                    const auto found = std::ranges::find(names, word);
                    if (found == names.end()) {
                        std::string commands;
                        for (const CommandRow& row : bench_rows()) {
                            commands += std::string(", nor ") + row.name;
                        }
                        throw Error("'" + word + "' is none of " + joined(names) + commands);
                    }
                    given.bench.preset = kPresets.at(static_cast<std::size_t>(found - names.begin()));
                });
}

std::string method_help() {
    std::vector<std::string> words = names_of(bench::kMethods);
    const auto explain = [&words](bench::Method method, const char* meaning) {
        *std::ranges::find(words, to_string(method)) += meaning;
    };
    explain(bench::Method::kPool, " (memory that a pool has ready)");
    explain(bench::Method::kReader, " (none; one vCPU reads every page first)");
    return "Methods: " + joined(words);
}

std::vector<Option> matrix_options() {
    return {
        preset_option(),
        list<std::uint64_t>(
            "-m,--memory", parse_memory, no_memory_size(), "Memory of the guest",
            [](Given& given, std::vector<std::uint64_t> sizes) { given.bench.matrix.memory_bytes = std::move(sizes); }),
        count_list("-c,--vcpus", {1, Config::kMaxVcpus}, "Virtual CPUs",
                   [](Given& given, std::vector<unsigned> counts) { given.bench.matrix.vcpus = std::move(counts); }),
        count_list("--workers", {1, Config::kMaxPrefaultWorkers},
                   "Prefault workers, and QEMU's prealloc-threads (default: the CPUs)",
                   [](Given& given, std::vector<unsigned> counts) { given.bench.matrix.workers = std::move(counts); }),
        choice_list("--page-size", kPageSizes, "Pages behind guest memory",
                    [](Given& given, auto sizes) { given.bench.matrix.page_sizes = std::move(sizes); }),
        choice_list("--prefault", bench::kMethods, method_help(),
                    [](Given& given, auto methods) { given.bench.matrix.methods = std::move(methods); }),
        choice_list("--order", bench::kOrders,
                    "In which order a vCPU visits its pages: " + joined(names_of(bench::kOrders)) +
                        " (default: " + joined(names_of(bench::Matrix{}.orders)) + ")",
                    [](Given& given, auto orders) { given.bench.matrix.orders = std::move(orders); }),
    };
}

std::vector<Option> share_options() {
    OptionValue share{.kind = OptionValue::Kind::kText, .form = "I/N"};
    return {
        text("--cells", std::move(share),
             "Only share I of N equal shares of all combinations: other hosts measure the others, and `vmm bench "
             "merge` joins the files of --json (docs/fleet.md)",
             [](Given& given, const std::string& word) {
                 given.bench.cells = bench::parse_share(word);
                 if (!given.bench.cells) {
                     throw Error("'" + word + "' is no share like 2/4: I is from 1 to N, and N at most " +
                                 std::to_string(bench::Share::kMostShares));
                 }
             }),
        count("--attempt", {1, bench::Settings::kMostAttempts},
              "How often this share has been begun, with this time, for --json: the merge names what was retried",
              [](Given& given, unsigned attempt) { given.bench.attempt = attempt; })
            .with_standard(std::to_string(BenchCommand{}.attempt)),
    };
}

std::vector<Option> run_settings() {
    return {
        count("--runs", {1, BenchCommand::kMaxRuns}, "Runs of each combination",
              [](Given& given, unsigned runs) { given.bench.runs = runs; })
            .with_standard(std::to_string(bench::PresetFacts{}.runs)),
        count("--passes", {bench::RunSettings::kMinPasses, bench::RunSettings::kMaxPasses},
              "Passes of the guest over its memory",
              [](Given& given, unsigned passes) { given.bench.settings.passes = passes; })
            .with_standard(std::to_string(bench::RunSettings{}.passes)),
        flag("--warm,!--no-warm", "Populate as much memory before each run (default), or measure it as it is",
             [](Given& given, bool warm) { given.bench.warm = warm; }),
        flag("--full", "The preset at its full size", [](Given& given, bool full) { given.bench.full = full; }),
        flag("--model", "Print what 64 GiB, 1 TiB and 16 TiB would take, from the costs measured",
             [](Given& given, bool model) { given.bench.model = model; }),
        quantity("--time-limit", "SECONDS", 1, 1e7, "Begin no further round of runs that would end later",
                 [](Given& given, double seconds) { given.bench.time_limit_seconds = seconds; }),
        quantity("--timeout", "SECONDS", 1, 1e6, "End a run that takes longer; it has failed",
                 [](Given& given, double seconds) { given.bench.timeout_seconds = seconds; })
            .with_standard(format_number(bench::RunSettings{}.timeout_seconds)),
    };
}

void take_contender(Given& given, const std::string& word) {
    if (word == "qemu") {
        given.bench.matrix.qemu = true;
    } else {
        given.bench.matrix.command = true;
        given.bench.settings.command = word;
    }
}

std::vector<Option> output_and_contender_options() {
    return {
        file("--json", "Write everything as JSON",
             [](Given& given, const std::string& path) { given.bench.json = path; }),
        file("--csv", "Write every run as CSV", [](Given& given, const std::string& path) { given.bench.csv = path; }),
        file("--plot", "Draw a picture, .svg or .png (needs gnuplot)",
             [](Given& given, const std::string& path) { given.bench.plot = path; }),
        text("--against", {.kind = OptionValue::Kind::kText, .form = "qemu|CMD", .choices = {"qemu"}},
             "Run the same guest on QEMU, with prealloc and without; or by a shell command with " +
                 std::string(bench::kTemplateNames) + ", whose output is the guest's serial port",
             take_contender)
            .repeated(),
        file("--qemu", "QEMU's program",
             [](Given& given, const std::string& path) { given.bench.settings.qemu = path; }),
        text("--qemu-machine", {.kind = OptionValue::Kind::kText, .form = "NAME"}, "QEMU's -M",
             [](Given& given, const std::string& name) { given.bench.settings.qemu_machine = name; }),
    };
}

std::string page_size_help() {
    return "Pages behind guest memory (default: " + joined(names_of(bench::kPageSizesOfAnyHost)) + ", and " +
           std::string(to_string(bench::kPageSizeOfPool)) + " if there are)";
}

std::vector<Option> state_options() {
    using Command = BenchStateCommand;
    return {
        flag("--quick",
             "Smaller and fewer, where the options do not say: " + size_text(Command::kQuick.memory_bytes) + ", " +
                 std::to_string(Command::kQuick.runs) + " runs, " + std::to_string(Command::kQuick.clones) + " clones",
             [](Given& given, bool quick) { given.bench_state.quick = quick; }),
        text("-m,--memory", {.kind = OptionValue::Kind::kText, .form = "SIZE"},
             "Memory of the guest (default: " + size_text(Command::kStandard.memory_bytes) + ")",
             [](Given& given, const std::string& word) {
                 const auto bytes = parse_memory(word);
                 if (!bytes) {
                     throw Error("'" + word + "' is " + no_memory_size());
                 }
                 given.bench_state.memory_bytes = bytes;
             }),
        count("-c,--vcpus", {1, Config::kMaxVcpus}, "Virtual CPUs",
              [](Given& given, unsigned vcpus) { given.bench_state.vcpus = vcpus; })
            .with_standard(std::to_string(Command{}.vcpus)),
        count("--workers", {1, Config::kMaxPrefaultWorkers},
              "Prefault workers, and threads that read and write memory (default: the CPUs)",
              [](Given& given, unsigned workers) { given.bench_state.workers = workers; }),
        choice_list("--page-size", kPageSizes, page_size_help(),
                    [](Given& given, auto sizes) { given.bench_state.page_sizes = std::move(sizes); }),
        choice_list("--restore-mode", kRestoreModes, "How memory becomes a guest's (default: all that this host has)",
                    [](Given& given, auto modes) { given.bench_state.modes = std::move(modes); }),
        count("--runs", {1, BenchCommand::kMaxRuns},
              "Runs of each case (default: " + std::to_string(Command::kStandard.runs) + ")",
              [](Given& given, unsigned runs) { given.bench_state.runs = runs; }),
        count("--clones", {1, Command::kMaxClones},
              "Guests that go on from one snapshot at once (default: " + std::to_string(Command::kStandard.clones) +
                  ")",
              [](Given& given, unsigned clones) { given.bench_state.clones = clones; }),
        flag("--warm,!--no-warm", "Populate as much memory before each run (default), or measure it as it is",
             [](Given& given, bool warm) { given.bench_state.warm = warm; }),
        quantity("--timeout", "SECONDS", 1, 1e6, "End a run that takes longer; it has failed",
                 [](Given& given, double seconds) { given.bench_state.timeout_seconds = seconds; })
            .with_standard(format_number(Command{}.timeout_seconds)),
        file("--json", "Write everything as JSON",
             [](Given& given, const std::string& path) { given.bench_state.json = path; }),
        file("--plot", "Draw a picture, .svg or .png (needs gnuplot)",
             [](Given& given, const std::string& path) { given.bench_state.plot = path; }),
    };
}

std::vector<Option> migrate_options() {
    using Command = BenchMigrateCommand;
    return {
        text("-m,--memory", {.kind = OptionValue::Kind::kText, .form = "SIZE"}, "Memory of the guest",
             [](Given& given, const std::string& word) {
                 const auto bytes = parse_memory(word);
                 if (!bytes) {
                     throw Error("'" + word + "' is " + no_memory_size());
                 }
                 given.bench_migrate.memory_bytes = *bytes;
             })
            .with_standard(size_text(Command{}.memory_bytes)),
        choice_list(
            "--mode", bench::kMigrateModes,
            "What the guest does, and how its memory goes over: it writes nothing; an eighth of its memory each "
            "second; all of it as fast as it can; memory is handed over; it goes over before its memory "
            "(default: all that this host has)",
            [](Given& given, auto modes) { given.bench_migrate.lists.modes = std::move(modes); }),
        choice_list("--page-size", kPageSizes, page_size_help(),
                    [](Given& given, auto sizes) { given.bench_migrate.lists.page_sizes = std::move(sizes); }),
        count_list("-c,--vcpus", {1, Config::kMaxVcpus},
                   "Virtual CPUs (default: those of " + joined(names_of(Command::kVcpus), ",") + " that this host has)",
                   [](Given& given, auto counts) { given.bench_migrate.lists.vcpus = std::move(counts); }),
        choice_list("--link", bench::kMigrateLinks, "Unix sockets, or TCP over the loopback interface (default: both)",
                    [](Given& given, auto links) { given.bench_migrate.lists.links = std::move(links); }),
        count_list("--streams", {1, MigrationOptions::kMostStreams},
                   "Connections that memory goes through (default: " + joined(names_of(Command::kStreams), ",") + ")",
                   [](Given& given, auto counts) { given.bench_migrate.lists.streams = std::move(counts); }),
        choice_list("--prefault", bench::kMigrateFills,
                    "What the destination populates before the guest arrives (default: both)",
                    [](Given& given, auto fills) { given.bench_migrate.lists.fills = std::move(fills); }),
        flag("--every", "Every combination, and not only those that differ from the first one in one thing",
             [](Given& given, bool every) { given.bench_migrate.every = every; }),
        count("--workers", {1, Config::kMaxPrefaultWorkers}, "Prefault workers (default: the CPUs)",
              [](Given& given, unsigned workers) { given.bench_migrate.workers = workers; }),
        count("--runs", {1, BenchCommand::kMaxRuns}, "Runs of each case",
              [](Given& given, unsigned runs) { given.bench_migrate.runs = runs; })
            .with_standard(std::to_string(Command{}.runs)),
        count("--downtime", {1, Command::kMaxDowntimeMs}, "Milliseconds that the guest may stand still",
              [](Given& given, unsigned milliseconds) { given.bench_migrate.downtime_ms = milliseconds; })
            .with_standard(std::to_string(Command{}.downtime_ms)),
        count("--give-up", {1, Command::kMaxGiveUpSeconds},
              "Seconds after which a guest that has not gone over stays where it is",
              [](Given& given, unsigned seconds) { given.bench_migrate.give_up_seconds = seconds; })
            .with_standard(std::to_string(Command{}.give_up_seconds)),
        flag("--warm,!--no-warm", "Populate as much memory before each run (default), or measure it as it is",
             [](Given& given, bool warm) { given.bench_migrate.warm = warm; }),
        quantity("--timeout", "SECONDS", 1, 1e6, "End a run that takes longer; it has failed",
                 [](Given& given, double seconds) { given.bench_migrate.timeout_seconds = seconds; })
            .with_standard(format_number(Command{}.timeout_seconds)),
        file("--json", "Write everything as JSON",
             [](Given& given, const std::string& path) { given.bench_migrate.json = path; }),
        file("--plot", "Draw a picture, .svg or .png (needs gnuplot)",
             [](Given& given, const std::string& path) { given.bench_migrate.plot = path; }),
    };
}

std::vector<Option> merge_options() {
    Option files{.names = "FILE", .help = "Files of `vmm bench --json`, by any hosts"};
    files.value = {.kind = OptionValue::Kind::kText, .form = "FILE"};
    files.value.is_file = true;
    files.take = [](Given& given, const Words& words) { given.bench_merge.files = words; };
    return {
        std::move(files).required().repeated(),
        file("--json", "Write the merged results as JSON",
             [](Given& given, const std::string& path) { given.bench_merge.json = path; }),
        file("--plot", "Draw a picture, .svg or .png, with a row for each kind of host (needs gnuplot)",
             [](Given& given, const std::string& path) { given.bench_merge.plot = path; }),
    };
}

std::vector<Option> compare_options() {
    return {
        file("BEFORE", "A file of --json, also of `vmm bench merge`",
             [](Given& given, const std::string& path) { given.compare.before = path; })
            .required(),
        file("AFTER", "Another one", [](Given& given, const std::string& path) { given.compare.after = path; })
            .required(),
        quantity("--threshold", "PERCENT", 0, 10000, "What counts as a change, in percent",
                 [](Given& given, double percent) { given.compare.threshold = percent / 100; })
            .with_standard(format_number(BenchCompareCommand{}.threshold * 100)),
    };
}

} // namespace

std::vector<Option> bench_options() {
    std::vector<Option> rows;
    const auto add = [&rows](std::vector<Option> part, Place place) {
        for (Option& row : part) {
            row.places = {place};
            rows.push_back(std::move(row));
        }
    };
    add(matrix_options(), Place::kBench);
    add(share_options(), Place::kBench);
    add(run_settings(), Place::kBench);
    add(output_and_contender_options(), Place::kBench);
    add(state_options(), Place::kBenchState);
    add(migrate_options(), Place::kBenchMigrate);
    add(merge_options(), Place::kBenchMerge);
    add(compare_options(), Place::kCompare);
    return rows;
}

} // namespace vmm
