#include "vmm/config_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <set>
#include <utility>

#include <nlohmann/json.hpp>

#include "kvm/error.hpp"
#include "kvm/unique_fd.hpp"

namespace vmm {

namespace {

using nlohmann::json;

constexpr std::size_t kMostBytes = 1 << 20;

/// A comma within a value is written twice, as on the command line.
std::string escaped(const std::string& text) {
    std::string result;
    for (const char c : text) {
        result.append(c == ',' ? 2 : 1, c);
    }
    return result;
}

/// One value as a word; nothing where it is none.
std::string word_of(const json& value, const std::string& where) {
    if (value.is_string()) {
        return value.get<std::string>();
    }
    if (value.is_number_integer()) {
        return value.dump();
    }
    throw Error(where + ": there has to be a string or a whole number");
}

/// The words of a device. Its first word may stand alone: the path of a disk.
std::string device_words(const json& object, const std::string& where) {
    std::string words;
    if (const auto path = object.find("path"); path != object.end()) {
        words = escaped(word_of(*path, where + ".path"));
    }
    for (const auto& [key, value] : object.items()) {
        if (key == "path" || (value.is_boolean() && !value.get<bool>())) {
            continue;
        }
        const std::string word = value.is_boolean() ? key : key + "=" + escaped(word_of(value, where + "." + key));
        words += (words.empty() ? "" : ",") + word;
    }
    return words;
}

std::vector<std::string> values_of(const json& value, const std::string& where) {
    if (value.is_boolean()) {
        return {value.get<bool>() ? "true" : "false"};
    }
    if (value.is_object()) {
        return {device_words(value, where)};
    }
    if (!value.is_array()) {
        return {word_of(value, where)};
    }
    std::vector<std::string> values;
    for (const json& element : value) {
        values.push_back(element.is_object() ? device_words(element, where) : word_of(element, where));
    }
    return values;
}

} // namespace

std::vector<ConfigFileEntry> parse_config_file(const std::string& text, const std::string& name) {
    const std::string tried = "cannot use the configuration in " + name;
    json root;
    // The parser keeps the last of two members of one name; we refuse them.
    std::set<std::string> seen;
    std::string twice;
    const auto watch = [&](int depth, json::parse_event_t event, json& parsed) {
        if (event == json::parse_event_t::key && depth == 1 && !seen.insert(parsed.get<std::string>()).second) {
            twice = parsed.get<std::string>();
        }
        return true;
    };
    try {
        root = json::parse(text, watch, true, true); // Comments are welcome.
    } catch (const json::exception& error) {
        const std::string reason = error.what();
        const std::size_t at = reason.find("at line");
        throw Error(tried + ": it is not JSON" + (at == std::string::npos ? "" : ": " + reason.substr(at)));
    }
    if (!root.is_object()) {
        throw Error(tried + ": it has to be one object: {\"memory\": \"4G\", ...}");
    }
    if (!twice.empty()) {
        throw Error(tried + ": it says '" + twice + "' twice");
    }
    std::vector<ConfigFileEntry> entries;
    for (const auto& [option, value] : root.items()) {
        std::vector<std::string> values = values_of(value, tried + ": " + option);
        if (!values.empty()) {
            entries.push_back({option, std::move(values)});
        }
    }
    return entries;
}

std::vector<ConfigFileEntry> read_config_file(const std::string& path) {
    const std::string tried = "read the configuration in " + path;
    const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file) {
        throw_errno(errno, tried);
    }
    std::string text;
    std::array<char, 4096> piece{};
    for (ssize_t count = 0; (count = ::read(file.get(), piece.data(), piece.size())) != 0;) {
        if (count < 0 && errno != EINTR) {
            throw_errno(errno, tried);
        }
        text.append(piece.data(), count < 0 ? 0 : static_cast<std::size_t>(count));
        if (text.size() > kMostBytes) {
            throw Error("cannot " + tried + ": it is larger than 1 MiB");
        }
    }
    return parse_config_file(text, path);
}

} // namespace vmm
