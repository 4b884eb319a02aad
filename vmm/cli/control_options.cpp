#include "vmm/cli/control_options.hpp"

#include <algorithm>
#include <filesystem>
#include <map>
#include <system_error>
#include <utility>

#include <nlohmann/json.hpp>

#include "kvm/host/error.hpp"
#include "vmm/cli/given.hpp"
#include "vmm/cli/values.hpp"
#include "vmm/control/verbs.hpp"
#include "vmm/migration.hpp"

namespace vmm {

namespace {

using control::Parameter;
using control::Verb;
using Json = nlohmann::ordered_json;

std::vector<std::string> verb_names() {
    std::vector<std::string> names;
    for (const Verb& verb : control::verbs()) {
        names.push_back(verb.name);
    }
    return names;
}

/// Returns "--incremental-to" for "incremental_to".
std::string option_name(const Parameter& parameter) {
    std::string name = "--" + parameter.name;
    std::ranges::replace(name, '_', '-');
    return name;
}

Option option_of(const Parameter& parameter) {
    const std::string& name = parameter.name;
    const std::string names = option_name(parameter);
    switch (parameter.kind) {
    case Parameter::Kind::kFlag:
        return flag(names, parameter.help,
                    [name](Given& given, bool on) { given.control.options[name] = on ? "true" : "false"; });
    case Parameter::Kind::kChoice: {
        Option option{.names = names, .help = parameter.help};
        option.value = {
            .kind = OptionValue::Kind::kChoice, .form = form_of(parameter.choices), .choices = parameter.choices};
        option.take = [name, choices = parameter.choices](Given& given, const std::vector<std::string>& words) {
            given.control.options[name] = choices[pick_choice(words.back(), choices)];
        };
        return std::move(option).with_standard(parameter.standard);
    }
    case Parameter::Kind::kAddress: // it has another place
    case Parameter::Kind::kPath:
        return file(names, parameter.help,
                    [name](Given& given, const std::string& path) { given.control.options[name] = path; });
    case Parameter::Kind::kName:
    case Parameter::Kind::kPorts:
        return text(names,
                    {.kind = OptionValue::Kind::kText,
                     .form = parameter.kind == Parameter::Kind::kName ? "NAME" : "PORTS"},
                    parameter.help,
                    [name](Given& given, const std::string& word) { given.control.options[name] = word; })
            .with_standard(parameter.standard);
    case Parameter::Kind::kNumber:
    case Parameter::Kind::kBytes:
        break;
    }
    const bool is_size = parameter.kind == Parameter::Kind::kBytes;
    return text(names, {.kind = OptionValue::Kind::kText, .form = is_size ? "SIZE" : "N"}, parameter.help,
                [name](Given& given, const std::string& word) { given.control.options[name] = word; })
        .with_standard(parameter.standard);
}

std::string upper(std::string word) {
    for (char& c : word) {
        c = static_cast<char>(c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c);
    }
    return word;
}

/// "add-memory AT SIZE"
std::string synopsis_of(const Verb& verb) {
    std::string form = verb.name;
    for (const Parameter& parameter : verb.parameters) {
        if (parameter.is_positional) {
            form += parameter.is_required ? " " + upper(parameter.name) : " [" + upper(parameter.name) + "]";
        }
    }
    for (const Parameter& parameter : verb.parameters) {
        if (!parameter.is_positional) {
            form += " [" + option_name(parameter) + (parameter.kind == Parameter::Kind::kFlag ? "]" : " ...]");
        }
    }
    return form;
}

/// Says what people must write for the parameter.
std::string what_is_written(const Parameter& parameter) {
    if (parameter.kind == Parameter::Kind::kBytes) {
        return "a size from " + std::to_string(parameter.least) + " to " + std::to_string(parameter.most);
    }
    const bool is_file = parameter.kind == Parameter::Kind::kPath;
    return is_file ? "the name of a file or a directory" : control::what_it_takes(parameter);
}

/// Returns the absolute path, because the machine may have another working directory than this process. Throws Error.
std::string absolute_path(const Parameter& parameter, const std::string& word) {
    std::error_code error;
    std::string path = std::filesystem::absolute(word, error).string();
    if (word.empty() || error || path.size() > Parameter::kMostPathBytes) {
        throw Error("'" + word + "' cannot be the " + parameter.name + ": it takes " + what_is_written(parameter));
    }
    return path;
}

/// Returns the value that people wrote, as JSON. Throws Error.
Json value_of(const Parameter& parameter, const std::string& word) {
    if (parameter.kind == Parameter::Kind::kFlag) {
        return word == "true";
    }
    if (parameter.kind == Parameter::Kind::kChoice) {
        return parameter.choices[pick_choice(word, parameter.choices)];
    }
    if (parameter.kind == Parameter::Kind::kName || parameter.kind == Parameter::Kind::kPorts) {
        return word; // the machine says what is wrong with it
    }
    if (parameter.kind == Parameter::Kind::kPath) {
        return absolute_path(parameter, word);
    }
    if (parameter.kind == Parameter::Kind::kAddress) {
        MigrationAddress address = MigrationAddress::parse(word);
        if (address.kind == MigrationAddress::Kind::kUnix) {
            address.path = absolute_path(parameter, address.path);
        }
        return to_string(address);
    }
    const bool is_size = parameter.kind == Parameter::Kind::kBytes;
    const bool is_number = word.find_first_not_of("0123456789") == std::string::npos;
    const auto number = is_size || is_number ? parse_size(word) : std::nullopt;
    if (!number || *number < parameter.least || *number > parameter.most) {
        throw Error("'" + word + "' cannot be the " + parameter.name + ": it takes " + what_is_written(parameter));
    }
    return *number;
}

std::string in_target(const Json& value) {
    return value.is_string() ? value.get<std::string>() : value.dump();
}

void put(const Parameter& parameter, const Json& value, ControlRequest& request, Json& body) {
    switch (parameter.place) {
    case Parameter::Place::kBody:
        body[parameter.name] = value;
        break;
    case Parameter::Place::kPath: {
        const std::string braces = "{" + parameter.name + "}";
        request.target.replace(request.target.find(braces), braces.size(), in_target(value));
        break;
    }
    case Parameter::Place::kQuery:
        request.target +=
            (request.target.find('?') == std::string::npos ? "?" : "&") + parameter.name + "=" + in_target(value);
        break;
    }
}

} // namespace

std::vector<Option> control_options() {
    OptionValue verb{.kind = OptionValue::Kind::kChoice, .form = "VERB", .choices = verb_names()};
    std::vector<Option> rows{
        file("SOCKET", "The control socket of the machine: its --api",
             [](Given& given, const std::string& path) { given.control.socket = path; })
            .required(),
        Option{.names = "VERB", .help = "What is asked of the machine, see below", .value = std::move(verb)}.required(),
        text("WORD", {.kind = OptionValue::Kind::kText, .form = "WORD"}, "What the verb needs, see below",
             [](Given& given, const std::string& word) { given.control.words.push_back(word); })
            .repeated(),
    };
    rows[1].take = [choices = verb_names()](Given& given, const std::vector<std::string>& words) {
        given.control.verb = choices[pick_choice(words.back(), choices)];
    };
    // A word that is given twice counts twice. The list begins anew each time the values are taken.
    rows[2].take = [](Given& given, const std::vector<std::string>& words) { given.control.words = words; };
    std::vector<std::string> seen;
    for (const Verb& one : control::verbs()) {
        for (const Parameter& parameter : one.parameters) {
            if (!parameter.is_positional && std::ranges::find(seen, parameter.name) == seen.end()) {
                seen.push_back(parameter.name);
                rows.push_back(option_of(parameter));
            }
        }
    }
    rows.push_back(flag("--json", "Print the answer as the machine gave it",
                        [](Given& given, bool json) { given.control.json = json; }));
    rows.push_back(flag("--no-wait", "Do not wait for the end of a job that was begun",
                        [](Given& given, bool no_wait) { given.control.wait = !no_wait; }));
    for (Option& row : rows) {
        row.places = {Place::kControl};
    }
    return rows;
}

const std::string& control_notes() {
    static const std::string kNotes = [] {
        constexpr std::size_t kColumn = 46;
        std::string text = "Verbs:\n";
        for (const Verb& verb : control::verbs()) {
            const std::string form = synopsis_of(verb);
            text += "  " + form +
                    (form.size() < kColumn ? std::string(kColumn - form.size(), ' ')
                                           : "\n" + std::string(kColumn + 2, ' ')) +
                    verb.help + "\n";
        }
        return text + "\n"
                      "Sizes take K, M, G or T (powers of 1024). A verb that begins a job waits for its end, unless "
                      "--no-wait\n"
                      "is given. docs/control.md has a walk, and the same with curl.\n"
                      "\n"
                      "Exit status:\n"
                      "  0  it is done\n"
                      "  1  the machine refused it, or a job failed or did not do all of its work\n"
                      "  2  the command line was not understood\n"
                      "  3  nobody serves at SOCKET, or whoever did went away before it had answered\n"
                      "  4  a signal ended the command; a job that was begun goes on";
    }();
    return kNotes;
}

ControlRequest request_of(const ControlCommand& command) {
    const Verb* const verb = control::find_verb(command.verb);
    if (verb == nullptr) {
        throw Error("VERB: '" + command.verb + "' is none of those that --help lists");
    }
    ControlRequest request{verb->method, verb->path};
    Json body = Json::object();
    std::map<std::string, std::string> options = command.options;
    std::size_t words = 0;
    bool has_body = false;
    for (const Parameter& parameter : verb->parameters) {
        has_body = has_body || parameter.place == Parameter::Place::kBody;
        if (parameter.is_positional) {
            if (words == command.words.size()) {
                if (!parameter.is_required) {
                    continue;
                }
                throw Error(verb->name + " needs " + upper(parameter.name) + ": " + what_is_written(parameter));
            }
            put(parameter, value_of(parameter, command.words[words++]), request, body);
        } else if (const auto given = options.extract(parameter.name)) {
            put(parameter, value_of(parameter, given.mapped()), request, body);
        }
    }
    if (words < command.words.size()) {
        throw Error("'" + command.words[words] + "' is one word too many for " + verb->name);
    }
    if (!options.empty()) {
        throw Error("--" + options.begin()->first + " does not go with " + verb->name);
    }
    if (has_body) {
        request.body = body.dump();
    }
    return request;
}

} // namespace vmm
