#include "vmm/cli/command_line.hpp"

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "kvm/host/error.hpp"
#include "prefault/options.hpp"
#include "vmm/cli/command_rows.hpp"
#include "vmm/cli/config_file.hpp"
#include "vmm/cli/config_schema.hpp"
#include "vmm/cli/control_options.hpp"
#include "vmm/cli/given.hpp"
#include "vmm/cli/option_names.hpp"
#include "vmm/cli/options.hpp"
#include "vmm/control/openapi.hpp"
#include "vmm/limits.hpp"
#include "vmm/state/snapshot_files.hpp"
#include "vmm/version.hpp"

namespace vmm {

namespace {

using exit_codes::kSuccess;
using exit_codes::kUsageError;
using Json = nlohmann::ordered_json;
constexpr std::size_t kHelpColumn = 36;

/// Calls `take`, and adds the option's name to the error that it throws. Throws CLI::ValidationError.
template <typename Take>
void named(const Option& option, Take take) {
    try {
        take();
    } catch (const Error& error) {
        throw CLI::ValidationError(option.written_name(), error.what());
    }
}

/// Refuses a text that CLI11 cannot take for a count, true or false.
const CLI::Validator kIsCount(
    [](std::string& text) {
        try {
            static_cast<void>(CLI::detail::to_flag_value(text));
            return std::string();
        } catch (const std::logic_error&) {
            return "'" + text + "' is neither true nor false";
        }
    },
    "");

CLI::Option* add_flag(CLI::App& app, const Option& option, Given& given) {
    return app
        .add_flag_function(
            option.names,
            [&option, &given](std::int64_t count) { named(option, [&] { option.take_count(given, count); }); },
            option.help)
        ->check(kIsCount)
        ->multi_option_policy(option.is_repeated ? CLI::MultiOptionPolicy::TakeAll : CLI::MultiOptionPolicy::Throw);
}

CLI::Option* add_valued(CLI::App& app, const Option& option, Given& given) {
    const auto take = [&option, &given](const std::vector<std::string>& words) {
        named(option, [&] { option.take(given, words); });
    };
    if (option.is_repeated && !option.names.starts_with('-')) { // a list of words
        return app.add_option_function<std::vector<std::string>>(option.names, take, option.help);
    }
    if (option.is_repeated) {
        return app.add_option_function<std::vector<std::string>>(option.names, take, option.help)
            ->expected(1)
            ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
            ->allow_extra_args(false);
    }
    return app.add_option_function<std::string>(
        option.names, [take](const std::string& word) { take({word}); }, option.help);
}

/// Adds a row of the table. `option` and `given` must outlive `app`.
void add_option(CLI::App& app, const Option& option, Given& given) {
    CLI::Option* added = nullptr;
    if (option.value.kind == OptionValue::Kind::kNone) {
        added = add_flag(app, option, given);
    } else {
        added = add_valued(app, option, given);
        added->type_name(option.value.form)->default_str(option.standard)->required(option.is_required);
    }
    if (!option.excludes.empty()) {
        added->excludes(app.get_option(option.excludes));
    }
}

/// Makes `app` the command of `row`. `given` must outlive `app`.
void add_row(CLI::App& app, const CommandRow& row, Given& given) {
    app.set_help_flag(help_option().names, help_option().help);
    app.footer(row.notes);
    for (const Option& option : options()) {
        if (option.is_allowed(row.place)) {
            add_option(app, option, given);
        }
    }
}

/// Adds all commands to `app` and returns them by their place in the table. `given` must outlive `app`.
std::map<Place, CLI::App*> add_commands(CLI::App& app, Given& given) {
    add_row(app, program_row(), given);
    app.set_version_flag(version_option().names, std::string("vmm ") + kVersion, version_option().help);
    app.require_subcommand(1);
    app.get_formatter()->column_width(kHelpColumn);
    std::map<Place, CLI::App*> commands;
    const auto add = [&](CLI::App& parent, const CommandRow& row) {
        CLI::App* const command = parent.add_subcommand(row.name, row.help);
        add_row(*command, row, given);
        if (!row.is_shown) {
            command->group(""); // CLI11 leaves a command without a group out of the help.
        }
        commands[row.place] = command;
    };
    for (const CommandRow& row : command_rows()) {
        add(app, row);
    }
    for (const CommandRow& row : bench_rows()) {
        add(*commands.at(Place::kBench), row);
    }
    return commands;
}

/// Checks the values of a member of the file one by one, so that a message names the right line. Throws Error.
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

/// Sets the options of `run` from `entries` of the file at `path`, unless they have a value already. `place` says which
/// options may be in the file. Throws Error.
void apply_entries(CLI::App& run, const std::vector<ConfigFileEntry>& entries, const std::string& path, Place place) {
    for (const ConfigFileEntry& entry : entries) {
        if (find_option(place, entry.option) == nullptr) {
            throw Error(config_file_error(path, entry.lines.front()) + "there is no option '" + entry.option + "'");
        }
        CLI::Option* const option = run.get_option("--" + entry.option);
        const auto& excluded = option->get_excludes();
        const bool overridden =
            option->count() != 0 || std::ranges::any_of(excluded, [](auto* other) { return other->count() != 0; });
        if (!overridden) {
            take_from_file(*option, entry, path);
        }
    }
}

void apply_config_file(CLI::App& run, const std::string& path, Place place) {
    apply_entries(run, read_config_file(path), path, place);
}

std::string config_file_of_snapshot(const std::string& directory) {
    return directory + "/" + snapshot_files::kConfig;
}

Json value_given(const Option& option, const std::string& word) {
    return option.value.kind == OptionValue::Kind::kNumber ? Json(std::stoul(word, nullptr, 0)) : Json(word);
}

/// The values that the options of `run` were given on the command line and in files, in the form of such a file. Only
/// options that may be in `place` are included.
std::string options_given(CLI::App& run, Place place) {
    Json given = Json::object();
    for (const Option& option : options()) {
        if (!option.is_allowed(place)) {
            continue;
        }
        const std::string name = option.long_name();
        const CLI::Option* const found = run.get_option("--" + name);
        const std::vector<std::string>& words = found->results();
        if (found->count() == 0 || words.empty()) {
            continue;
        }
        if (option.value.kind == OptionValue::Kind::kNone) {
            given[name] = CLI::detail::to_flag_value(words.back()) > 0;
        } else if (option.is_repeated) {
            given[name] = words;
        } else {
            given[name] = value_given(option, words.back());
        }
    }
    return given.dump(-1, ' ', false, Json::error_handler_t::replace);
}

/// Makes one line of a text that may quote a user or a file. The line has a readable length, and no control characters
/// for a terminal.
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
    return {"vmm: error: " + on_one_line(with_option_names(what)) + " (see `" + command + " --help`)\n", kUsageError};
}

/// Says what is wrong with a command line. If no command was found, the message names the word in its place.
std::string describe_parse_error(const CLI::App& app, const CLI::ParseError& error) {
    const std::vector<std::string> strange = app.remaining();
    if (!app.get_subcommands().empty() || strange.empty()) {
        return error.what();
    }
    std::string commands;
    for (const CommandRow& row : command_rows()) {
        if (row.is_shown) {
            commands += (commands.empty() ? "" : " or ") + std::string(row.name);
        }
    }
    return "'" + strange.front() + "' is no command: it is " + commands;
}

CommandText describe(const CommandRow& row) {
    CommandText text{row.name, row.help, {help_option()}, row.notes};
    if (row.place == Place::kProgram) {
        text.options.push_back(version_option());
    }
    for (const Option& option : options()) {
        if (option.is_allowed(row.place)) {
            text.options.push_back(option);
        }
    }
    return text;
}

} // namespace

std::vector<CommandText> describe_commands() {
    std::vector<CommandText> commands{describe(program_row())};
    for (const CommandRow& row : command_rows()) {
        if (row.is_shown) {
            commands.push_back(describe(row));
        }
    }
    return commands;
}

namespace {

/// Does what parse_command_line() does. If a guest has arrived, `config_of_guest` is the configuration of its machine;
/// it is used for options that the words do not give. Otherwise it is null.
Command parse(int argc, const char* const* argv, const std::string* config_of_guest) {
    CLI::App app(program_row().help, program_row().name);
    Given given;
    given.bench.matrix.orders.clear(); // those of the preset, unless an option is given
    const std::map<Place, CLI::App*> commands = add_commands(app, given);
    const auto is_given = [&](Place place) { return commands.at(place)->parsed(); };
    try {
        app.parse(argc, argv);
        if (!given.run.config_file.empty()) {
            apply_config_file(*commands.at(Place::kRun), given.run.config_file, Place::kFile);
        }
        if (!given.restore.empty()) {
            apply_config_file(*commands.at(Place::kRun), config_file_of_snapshot(given.restore), Place::kSnapshot);
        }
        if (config_of_guest != nullptr && !config_of_guest->empty()) {
            constexpr const char* kName = "what the source sends";
            apply_entries(*commands.at(Place::kRun), parse_config_file(*config_of_guest, kName), kName,
                          Place::kSnapshot);
        }
    } catch (const CLI::Success& success) { // The words ask for help or the version.
        std::ostringstream text;
        app.exit(success, text, text);
        return TextCommand{text.str(), kSuccess};
    } catch (const CLI::ParseError& error) {
        return usage_error(app, describe_parse_error(app, error));
    } catch (const Error& error) { // the file is wrong, and help says nothing about it
        return TextCommand{"vmm: error: " + on_one_line(with_option_names(error.what())) + "\n", kUsageError};
    }
    if (is_given(Place::kDoctor)) {
        return DoctorCommand{};
    }
    if (is_given(Place::kControl)) {
        try {
            static_cast<void>(request_of(given.control)); // errors are reported before anybody is asked
            return given.control;
        } catch (const Error& error) {
            return usage_error(app, error.what());
        }
    }
    if (is_given(Place::kApiSchema)) {
        return TextCommand{control::openapi_document(), kSuccess};
    }
    if (is_given(Place::kSnapshotCommand)) {
        return given.snapshot;
    }
    if (is_given(Place::kPool)) {
        return given.pool;
    }
    if (is_given(Place::kConfigSchema)) {
        return TextCommand{config_schema(), kSuccess};
    }
    if (is_given(Place::kCompare)) {
        return given.compare;
    }
    if (is_given(Place::kBenchMerge)) {
        return given.bench_merge;
    }
    if (is_given(Place::kBenchState)) {
        return given.bench_state;
    }
    if (is_given(Place::kBenchMigrate)) {
        return given.bench_migrate;
    }
    if (is_given(Place::kBench)) {
        if (given.bench.attempt != 1 && !given.bench.cells) {
            return usage_error(app, "--attempt says how often --cells was begun: give that, too");
        }
        return given.bench;
    }
    // This reads the number of processors from the host. If that fails, the command line is not wrong, so main()
    // reports the error.
    given.run.config.prefault = prefault::resolved(std::move(given.run.config.prefault));
    try {
        RunCommand run = run_command_of(given);
        run.given = options_given(*commands.at(Place::kRun), Place::kFile);
        run.given_of_machine = options_given(*commands.at(Place::kRun), Place::kSnapshot);
        if (run.incoming) {
            run.completed = [argc, argv](const std::string& config) -> std::variant<RunCommand, TextCommand> {
                Command command = parse(argc, argv, &config);
                if (auto* const text = std::get_if<TextCommand>(&command)) {
                    return std::move(*text);
                }
                return std::get<RunCommand>(std::move(command));
            };
        }
        return run;
    } catch (const Error& error) {
        return usage_error(app, error.what());
    }
}

} // namespace

Command parse_command_line(int argc, const char* const* argv) {
    return parse(argc, argv, nullptr);
}

} // namespace vmm
