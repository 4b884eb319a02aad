#include "vmm/cli/option.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <span>
#include <sstream>

#include "kvm/host/error.hpp"
#include "kvm/host/text.hpp"

namespace vmm {

namespace {

/// A whole number in decimal, or with the prefixes of C. Throws Error.
unsigned parse_number(const std::string& word) {
    if (word.empty()) {
        throw Error("it is empty");
    }
    const bool begins_with_digit = word.front() >= '0' && word.front() <= '9'; // strtoull() takes a sign, too.
    char* end = nullptr;
    errno = 0;
    const unsigned long long value = std::strtoull(word.c_str(), &end, 0);
    if (!begins_with_digit || end != word.c_str() + word.size() || errno != 0 ||
        value > std::numeric_limits<unsigned>::max()) {
        throw Error("'" + word + "' is no whole number that can be used here");
    }
    return static_cast<unsigned>(value);
}

} // namespace

bool Option::is_allowed(Place place) const {
    return std::ranges::find(places, place) != places.end();
}

std::vector<std::string> Option::written_names() const {
    std::vector<std::string> written;
    std::vector<std::string> positionals;
    std::istringstream in(names);
    for (std::string name; std::getline(in, name, ',');) {
        if (name.starts_with('!')) { // This name negates the option.
            name.erase(0, 1);
        }
        (name.starts_with('-') ? written : positionals).push_back(name);
    }
    written.insert(written.end(), positionals.begin(), positionals.end());
    return written;
}

std::string Option::written_name() const {
    const std::string name = long_name();
    return name.empty() ? written_names().front() : "--" + name;
}

std::string Option::long_name() const {
    for (const std::string& name : written_names()) {
        if (name.starts_with("--")) {
            return name.substr(2);
        }
    }
    return {};
}

Option Option::with_standard(std::string text) && {
    standard = std::move(text);
    return std::move(*this);
}

Option Option::setting(std::string config_member) && {
    member = std::move(config_member);
    return std::move(*this);
}

Option Option::only_in(std::vector<Place> allowed) && {
    places = std::move(allowed);
    return std::move(*this);
}

Option Option::excluding(std::string other) && {
    excludes = std::move(other);
    return std::move(*this);
}

Option Option::required() && {
    is_required = true;
    return std::move(*this);
}

Option Option::repeated() && {
    is_repeated = true;
    return std::move(*this);
}

Option flag(std::string names, std::string help, std::function<void(Given&, bool)> set) {
    Option option{.names = std::move(names), .help = std::move(help)};
    option.take_count = [set = std::move(set)](Given& given, std::int64_t count) { set(given, count > 0); };
    return option;
}

Option text(std::string names, OptionValue value, std::string help,
            std::function<void(Given&, const std::string&)> parse_into) {
    Option option{.names = std::move(names), .help = std::move(help), .value = std::move(value)};
    option.take = [may_be_empty = option.value.may_be_empty,
                   parse_into = std::move(parse_into)](Given& given, const std::vector<std::string>& words) {
        for (const std::string& word : words) {
            if (word.empty() && !may_be_empty) {
                throw Error("it is empty");
            }
            parse_into(given, word);
        }
    };
    return option;
}

Option file(std::string names, std::string help, std::function<void(Given&, const std::string&)> set,
            std::vector<std::string> choices) {
    OptionValue value{
        .kind = OptionValue::Kind::kText, .form = form_of(choices, "FILE"), .choices = std::move(choices)};
    value.is_file = true;
    value.may_be_number = true;
    return text(std::move(names), std::move(value), std::move(help), std::move(set));
}

Option number(std::string names, Limits limits, std::string help, std::function<void(Given&, unsigned)> set) {
    Option option{.names = std::move(names), .help = std::move(help)};
    option.value = {.kind = OptionValue::Kind::kNumber, .form = "N", .limits = limits};
    option.take = [set = std::move(set)](Given& given, const std::vector<std::string>& words) {
        set(given, parse_number(words.back()));
    };
    return option;
}

std::optional<std::size_t> find_choice(const std::string& name, const std::vector<std::string>& choices) {
    for (std::size_t i = 0; i < choices.size(); ++i) {
        if (lower_case(choices[i]) == lower_case(name)) {
            return i;
        }
    }
    return std::nullopt;
}

std::size_t pick_choice(const std::string& name, const std::vector<std::string>& choices) {
    const auto found = find_choice(name, choices);
    if (!found) {
        throw Error("'" + name + "' is none of " + joined(choices));
    }
    return *found;
}

std::string form_of(const std::vector<std::string>& choices, std::string_view rest) {
    const std::string form = joined(choices, "|");
    return form + (form.empty() || rest.empty() ? "" : "|") + std::string(rest);
}

std::string listed(const std::vector<std::string>& words) {
    if (words.size() < 2) {
        return joined(words);
    }
    return joined(std::span(words).first(words.size() - 1)) + " or " + words.back();
}

std::string to_string(const Limits& limits) {
    return std::to_string(limits.least) + " to " + std::to_string(limits.most);
}

} // namespace vmm
