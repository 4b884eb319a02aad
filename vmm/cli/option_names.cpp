#include "vmm/cli/option_names.hpp"

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "vmm/cli/device_options.hpp"
#include "vmm/cli/options.hpp"

namespace vmm {

namespace {

constexpr std::string_view kPrefix = "Config::";
/// Stands before `Config` if the member is one of MemoryPoolConfig, which the options of `vmm pool` set.
constexpr std::string_view kOfPool = "MemoryPool";
/// Members of a structure that `vmm run` uses for Config::incoming, and `vmm ctl` for a migration, under the same
/// names.
constexpr std::string_view kOfSecurity = "MigrationSecurity::";
constexpr std::string_view kSecurityMember = "Config::incoming.security.";

/// True if a name that ends where `rest` begins is not a part of a longer name. A point may end a sentence.
bool ends_here(std::string_view rest) {
    const auto is_of_name = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; };
    const bool goes_on =
        !rest.empty() && (is_of_name(rest[0]) || (rest[0] == '.' && rest.size() > 1 && is_of_name(rest[1])));
    return !goes_on;
}

/// The command's words that replace the beginning of a text.
struct Replacement {
    std::string words;
    std::size_t length = 0; ///< of the replaced text
};

/// Replaces `name` at the beginning of `text` by `words`, unless it is a part of a longer name.
std::optional<Replacement> replace_whole(std::string_view text, const std::string& name, std::string words) {
    if (!text.starts_with(name) || !ends_here(text.substr(name.size()))) {
        return std::nullopt;
    }
    return Replacement{std::move(words), name.size()};
}

/// Replaces the member that `option` sets at the beginning of `text`, which is the text after kPrefix.
std::optional<Replacement> replace_member(std::string_view text, const Option& option) {
    const std::string name = option.written_names().front();
    if (option.value.kind == OptionValue::Kind::kDevice) { // "nets.user" is a word of --net.
        for (const DeviceWord& word : find_device_syntax(option.long_name())->words) {
            if (auto found = replace_whole(text, option.member + "." + word.name, name + " " + word.name)) {
                return found;
            }
        }
    }
    if (option.value.choices == std::vector<std::string>{"on", "off"}) { // The member is a bool.
        for (const auto& [value, word] : {std::pair("=true", " on"), std::pair("=false", " off")}) {
            if (auto found = replace_whole(text, option.member + value, name + word)) {
                return found;
            }
        }
    } else if (option.value.choices.size() == 1) { // Likewise, and the option says that it is true.
        if (auto found = replace_whole(text, option.member + "=true", name + " " + option.value.choices.front())) {
            return found;
        }
    }
    return replace_whole(text, option.member, name);
}

/// Does the same for any option.
std::optional<Replacement> replace_any_member(std::string_view text, bool of_pool) {
    for (const Option& option : options()) {
        if (!option.member.empty() && option.is_allowed(Place::kPool) == of_pool) {
            if (auto found = replace_member(text, option)) {
                return found;
            }
        }
    }
    return std::nullopt;
}

} // namespace

std::string with_option_names(std::string_view text) {
    std::string whole(text);
    for (std::size_t at = 0; (at = whole.find(kOfSecurity, at)) != std::string::npos;) {
        whole.replace(at, kOfSecurity.size(), kSecurityMember);
    }
    std::string_view rest = whole;
    std::string result;
    while (!rest.empty()) {
        const std::size_t at = std::min(rest.find(kPrefix), rest.size());
        result += rest.substr(0, at);
        rest.remove_prefix(at);
        if (rest.empty()) {
            break;
        }
        rest.remove_prefix(kPrefix.size());
        const bool of_pool = result.ends_with(kOfPool);
        if (const auto found = replace_any_member(rest, of_pool)) {
            result.erase(result.size() - (of_pool ? kOfPool.size() : 0));
            result += found->words;
            rest.remove_prefix(found->length);
        } else {
            result += kPrefix;
        }
    }
    return result;
}

} // namespace vmm
