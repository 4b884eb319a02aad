#include "vmm/cli/config_file.hpp"

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <span>
#include <utility>

#include <nlohmann/json.hpp>

#include "kvm/host/error.hpp"
#include "kvm/host/stoppable_read.hpp"
#include "kvm/host/unique_fd.hpp"
#include "vmm/cli/device_options.hpp"

namespace vmm {

namespace {

using nlohmann::json;

constexpr std::size_t kMostBytes = 1 << 20;
constexpr std::size_t kDeepest = 8; ///< nested objects and arrays

/// One value with its line. The parser's own values have no lines and no order, and hide a member that occurs twice.
struct NamedNode;
struct Node {
    enum class Kind { kNull, kBoolean, kInteger, kFraction, kString, kObject, kArray };
    Kind kind = Kind::kNull;
    std::size_t line = 1; ///< of a member, the line of its name
    bool flag = false;
    std::string text; ///< of a string or a number
    std::vector<NamedNode> members;
    std::vector<Node> elements;
};
struct NamedNode {
    std::string name;
    Node value;
};

/// Counts the lines that the parser has read.
class LineIterator {
  public:
    using iterator_category = std::forward_iterator_tag;
    using value_type = char;
    using difference_type = std::ptrdiff_t;
    using pointer = const char*;
    using reference = const char&;

    LineIterator() = default;
    LineIterator(const char* at, std::size_t& line) : at_(at), line_(&line) {}
    reference operator*() const { return *at_; }
    LineIterator& operator++() {
        *line_ += *at_++ == '\n' ? 1 : 0;
        return *this;
    }
    LineIterator operator++(int) {
        const LineIterator before = *this;
        ++*this;
        return before;
    }
    friend bool operator==(const LineIterator& a, const LineIterator& b) { return a.at_ == b.at_; }

  private:
    const char* at_ = nullptr;
    std::size_t* line_ = nullptr;
};

/// Builds nodes from the events of the parser. It throws Error through the parser.
class Builder final : public json::json_sax_t {
  public:
    Builder(const std::string& name, const std::size_t& line) : name_(name), line_(line) {}

    Node take() { return std::move(root_); }

    bool null() override { return add(Node::Kind::kNull); }
    bool boolean(bool value) override { return add(Node::Kind::kBoolean, {}, value); }
    bool number_integer(number_integer_t value) override { return add(Node::Kind::kInteger, std::to_string(value)); }
    bool number_unsigned(number_unsigned_t value) override { return add(Node::Kind::kInteger, std::to_string(value)); }
    bool number_float(number_float_t /*value*/, const string_t& text) override {
        return add(Node::Kind::kFraction, text);
    }
    bool string(string_t& value) override {
        check_no_nul(value);
        return add(Node::Kind::kString, std::move(value));
    }
    bool binary(binary_t& /*value*/) override { return false; } // JSON has none
    bool start_object(std::size_t /*elements*/) override { return open(Node::Kind::kObject); }
    bool start_array(std::size_t /*elements*/) override { return open(Node::Kind::kArray); }
    bool end_object() override { return close(); }
    bool end_array() override { return close(); }
    bool key(string_t& name) override {
        check_no_nul(name);
        if (const auto [first, is_new] = names_.back().emplace(name, line_); !is_new) {
            throw Error(config_file_error(name_, line_) + "it says '" + name + "' twice, first in line " +
                        std::to_string(first->second));
        }
        auto& members = open_.back()->members;
        members.push_back({std::move(name), Node{}});
        members.back().value.line = line_;
        return true;
    }
    bool parse_error(std::size_t /*position*/, const std::string& /*token*/,
                     const nlohmann::detail::exception& error) override {
        // The parser quotes the text that it has read last, however long that is.
        constexpr std::size_t kMostReasonBytes = 200;
        const std::string reason = error.what();
        const std::size_t at = reason.find("at line");
        if (at == std::string::npos) { // a number may be too large for any floating-point type
            throw Error(config_file_error(name_, line_) + "it is not JSON that can be read");
        }
        throw Error("cannot use the configuration in " + name_ + ": it is not JSON: " +
                    reason.substr(at, kMostReasonBytes) + (reason.size() - at > kMostReasonBytes ? "..." : ""));
    }

  private:
    /// Throws Error if the text has a NUL. A path with a NUL would name another file than it seems to.
    void check_no_nul(const std::string& text) const {
        if (text.find('\0') != std::string::npos) {
            throw Error(config_file_error(name_, line_) + "there is a NUL character (\\u0000) in a string: remove it");
        }
    }

    /// Returns the node for the next value.
    Node& place() {
        if (open_.empty()) {
            return root_;
        }
        Node& parent = *open_.back();
        if (parent.kind == Node::Kind::kObject) {
            return parent.members.back().value; // key() has made it, with its line
        }
        parent.elements.emplace_back().line = line_;
        return parent.elements.back();
    }
    bool add(Node::Kind kind, std::string text = {}, bool flag = false) {
        Node& node = place();
        node.kind = kind;
        node.text = std::move(text);
        node.flag = flag;
        return true;
    }
    bool open(Node::Kind kind) {
        if (open_.size() == kDeepest) {
            throw Error(config_file_error(name_, line_) + "it is nested too deeply");
        }
        Node& node = place();
        node.kind = kind;
        open_.push_back(&node); // its parent does not grow until it is closed
        names_.emplace_back();
        return true;
    }
    bool close() {
        open_.pop_back();
        names_.pop_back();
        return true;
    }

    const std::string& name_;
    const std::size_t& line_;
    Node root_;
    std::vector<Node*> open_;
    /// The names in each object of open_, with their lines.
    std::vector<std::map<std::string, std::size_t>> names_;
};

/// Makes words of one member. Messages name the member.
class Member {
  public:
    Member(const std::string& name, const std::string& option)
        : name_(name), option_(option), syntax_(find_device_syntax(option)) {}

    [[nodiscard]] ConfigFileEntry entry_of(const Node& value) const {
        ConfigFileEntry entry{option_, {}, {}};
        const auto add = [&entry](std::string word, std::size_t line) {
            entry.values.push_back(std::move(word));
            entry.lines.push_back(line);
        };
        if (value.kind == Node::Kind::kBoolean) {
            add(value.flag ? "true" : "false", value.line);
        } else if (value.kind == Node::Kind::kArray) {
            for (const Node& element : value.elements) {
                add(words_of(element), element.line);
            }
        } else {
            add(words_of(value), value.line);
        }
        return entry;
    }

  private:
    [[noreturn]] void refuse(const Node& node, const std::string& member, const std::string& why) const {
        throw Error(config_file_error(name_, node.line) + member + ": " + why);
    }

    [[nodiscard]] std::string word_of(const Node& value, const std::string& member) const {
        if (value.kind != Node::Kind::kString && value.kind != Node::Kind::kInteger) {
            refuse(value, member, "there has to be a string or a whole number");
        }
        return value.text;
    }

    [[nodiscard]] std::string words_of(const Node& value) const {
        return value.kind == Node::Kind::kObject ? device_words(value) : word_of(value, option_);
    }

    /// Returns the words of a device. A value without a name comes first: the path of a disk.
    [[nodiscard]] std::string device_words(const Node& object) const {
        if (syntax_ == nullptr) {
            refuse(object, option_, "there has to be a string or a whole number: it is no device");
        }
        const bool has_first = syntax_->words.front().kind == DeviceWord::Kind::kFirst;
        const std::string first = has_first ? syntax_->words.front().name : "";
        std::string words;
        for (const auto& [key, value] : object.members) {
            if (has_first && key == first) {
                words = escaped(word_of(value, option_ + "." + key));
            }
        }
        if (has_first && words.empty()) {
            refuse(object, option_, "there has to be a member '" + first + "'");
        }
        for (const auto& [key, value] : object.members) {
            if (has_first && key == first) {
                continue;
            }
            if (value.kind == Node::Kind::kBoolean && is_switch(key)) {
                append(words, key + (value.flag ? "=on" : "=off"));
            } else if (value.kind == Node::Kind::kBoolean) {
                append(words, value.flag ? key : "");
            } else if (value.kind == Node::Kind::kArray) {
                for (const Node& element : value.elements) {
                    append(words, key + "=" + escaped(word_of(element, option_ + "." + key)));
                }
            } else {
                append(words, key + "=" + escaped(word_of(value, option_ + "." + key)));
            }
        }
        return words;
    }

    /// Whether `key` is a switch. For a switch `false` is a word, too.
    [[nodiscard]] bool is_switch(const std::string& key) const {
        return std::ranges::any_of(syntax_->words, [&](const DeviceWord& word) {
            return word.name == key && word.kind == DeviceWord::Kind::kSwitch;
        });
    }

    static void append(std::string& words, const std::string& word) {
        words += (words.empty() || word.empty() ? "" : ",") + word;
    }
    /// Writes a comma within a value twice, as on the command line.
    static std::string escaped(const std::string& text) {
        std::string result;
        for (const char c : text) {
            result.append(c == ',' ? 2 : 1, c);
        }
        return result;
    }

    const std::string& name_;
    const std::string& option_;
    const DeviceSyntax* syntax_;
};

} // namespace

std::string config_file_error(const std::string& name, std::size_t line) {
    return "cannot use the configuration in " + name + ", line " + std::to_string(line) + ": ";
}

std::vector<ConfigFileEntry> parse_config_file(const std::string& text, const std::string& name) {
    std::size_t line = 1;
    if (const std::size_t nul = text.find('\0'); nul != std::string::npos) { // the parser would take it for the end
        line +=
            static_cast<std::size_t>(std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(nul), '\n'));
        throw Error(config_file_error(name, line) + "there is a NUL character: it is no text");
    }
    Builder builder(name, line);
    const bool parsed =
        json::sax_parse(LineIterator(text.data(), line), LineIterator(text.data() + text.size(), line), &builder,
                        json::input_format_t::json, true, true); // The last argument allows comments.
    const Node root = builder.take();
    if (!parsed || root.kind != Node::Kind::kObject) {
        throw Error("cannot use the configuration in " + name + ": it has to be one object: {\"memory\": \"4G\", ...}");
    }
    std::vector<ConfigFileEntry> entries;
    for (const auto& [option, value] : root.members) {
        ConfigFileEntry entry = Member(name, option).entry_of(value);
        if (!entry.values.empty()) {
            entries.push_back(std::move(entry));
        }
    }
    return entries;
}

std::vector<ConfigFileEntry> read_config_file(const std::string& path, int stop_fd) {
    const std::string tried = "read the configuration in " + path;
    const UniqueFd file = open_for_reading(path, stop_fd, tried);
    std::string text;
    std::array<char, 4096> piece{};
    while (const std::size_t count = read_some(file.get(), std::as_writable_bytes(std::span(piece)), stop_fd, tried)) {
        text.append(piece.data(), count);
        if (text.size() > kMostBytes) {
            throw Error("cannot " + tried + ": it is larger than 1 MiB");
        }
    }
    return parse_config_file(text, path);
}

} // namespace vmm
