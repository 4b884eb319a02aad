// One row of the table of options: all facts about an option.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace vmm {

struct Given;

/// Where an option is allowed: in a command, or in the configuration file.
enum class Place {
    kProgram,
    kRun,
    kFile,
    kSnapshot, ///< options that are kept with a snapshot, and count again when it is restored
    kSnapshotCommand,
    kControl,
    kDoctor,
    kConfigSchema,
    kApiSchema,
    kPool,
    kBench,
    kBenchState,
    kBenchMigrate,
    kBenchMerge,
    kCompare
};

/// The numbers that an option takes, both ends included.
struct Limits {
    std::uint64_t least = 0;
    std::uint64_t most = std::numeric_limits<unsigned>::max();
};

/// The values that an option takes, for help, manual pages, completions and the schema.
struct OptionValue {
    enum class Kind {
        kNone,   ///< no value: the option is given, or is not
        kNumber, ///< a whole number within `limits`
        kChoice, ///< one of `choices`, in any case
        kText,   ///< one of `choices`, or another text
        kDevice, ///< the words of a device (device_options.hpp)
    };
    Kind kind = Kind::kNone;
    std::string form{};                 ///< what help shows for the value: "SIZE", "none|host|all"
    std::vector<std::string> choices{}; ///< of kText: the words that mean something of their own
    Limits limits{};
    std::string pattern{};      ///< of kText: an ECMAScript expression for every value; empty: any text
    bool is_file = false;       ///< of kText: whether other texts name files
    bool may_be_empty = false;  ///< of kText
    bool may_be_number = false; ///< of kText: whether a configuration file may have a number there
};

/// A row of the table. Command line, configuration file, schema, manual pages and completions are made from it.
struct Option {
    std::string names; ///< as CLI11 takes them: "-m,--memory", "KERNEL,--kernel", "--warm,!--no-warm"
    std::string help{};
    OptionValue value{};
    std::vector<Place> places{};
    /// The member of Config that it sets, as errors of the library name it: "prefault.scope". Empty: no error names it.
    std::string member{};
    std::string standard{};   ///< the default, as help shows it; empty: help shows none
    std::string excludes{};   ///< an earlier option that cannot be given as well, with its dashes
    bool is_required = false; ///< of a positional
    bool is_repeated = false; ///< whether the option may be given several times
    /// Takes the values that the option was given: one, or several if `is_repeated`. If it is called again, the last
    /// call counts. Throws Error, which does not name the option.
    std::function<void(Given&, const std::vector<std::string>&)> take{};
    /// Does the same for kNone. The number is how often the option was given, or less than 0 if it was negated.
    std::function<void(Given&, std::int64_t)> take_count{};

    [[nodiscard]] bool is_allowed(Place place) const;
    /// All names as people write them, the short one first and a positional's last: "-m", "--memory".
    [[nodiscard]] std::vector<std::string> written_names() const;
    /// The name in messages: "--memory", or a positional's "PRESET".
    [[nodiscard]] std::string written_name() const;
    /// The name in a configuration file: "memory"; empty if it has no long one.
    [[nodiscard]] std::string long_name() const;

    [[nodiscard]] Option with_standard(std::string text) &&;
    [[nodiscard]] Option setting(std::string config_member) &&;
    [[nodiscard]] Option only_in(std::vector<Place> allowed) &&;
    [[nodiscard]] Option excluding(std::string other) &&;
    [[nodiscard]] Option required() &&;
    [[nodiscard]] Option repeated() &&;
};

/// An option without a value.
[[nodiscard]] Option flag(std::string names, std::string help, std::function<void(Given&, bool)> set);

/// An option that takes a text. `parse_into` throws Error for a text that it does not take.
[[nodiscard]] Option text(std::string names, OptionValue value, std::string help,
                          std::function<void(Given&, const std::string&)> parse_into);

/// An option that takes the name of a file, which is never empty. `choices` are words that name no file.
[[nodiscard]] Option file(std::string names, std::string help, std::function<void(Given&, const std::string&)> set,
                          std::vector<std::string> choices = {});

/// An option that takes a whole number. Help shows `limits`, but the library refuses numbers outside them.
[[nodiscard]] Option number(std::string names, Limits limits, std::string help,
                            std::function<void(Given&, unsigned)> set);

/// The index of `name` in `choices`, in any case; nothing if it is none of them.
[[nodiscard]] std::optional<std::size_t> find_choice(const std::string& name, const std::vector<std::string>& choices);
/// Returns the same. Throws Error if `name` is none of them.
[[nodiscard]] std::size_t pick_choice(const std::string& name, const std::vector<std::string>& choices);

/// Returns "none|host|all", with "|FILE" after it if `rest` is "FILE".
[[nodiscard]] std::string form_of(const std::vector<std::string>& choices, std::string_view rest = {});

/// "none, host or all"
[[nodiscard]] std::string listed(const std::vector<std::string>& words);

/// "1 to 254"
[[nodiscard]] std::string to_string(const Limits& limits);

/// The names of `values`, made by their to_string().
template <typename Values>
[[nodiscard]] std::vector<std::string> names_of(const Values& values) {
    using std::to_string; // of numbers
    std::vector<std::string> names;
    for (const auto& value : values) {
        names.emplace_back(to_string(value));
    }
    return names;
}

/// An option that takes one of `values` by its name.
template <typename Value>
[[nodiscard]] Option choice(std::string names, std::vector<Value> values, std::string help,
                            std::type_identity_t<std::function<void(Given&, Value)>> set) {
    std::vector<std::string> choices = names_of(values);
    Option option{.names = std::move(names), .help = std::move(help)};
    option.value = {.kind = OptionValue::Kind::kChoice, .form = form_of(choices), .choices = choices};
    option.take = [values = std::move(values), choices = std::move(choices),
                   set = std::move(set)](Given& given, const std::vector<std::string>& words) {
        set(given, values[pick_choice(words.back(), choices)]);
    };
    return option;
}

} // namespace vmm
