#include "vmm/cli/device_options.hpp"

#include <algorithm>
#include <array>
#include <cassert>
#include <cctype>
#include <charconv>
#include <iterator>
#include <map>
#include <optional>
#include <system_error>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/host/text.hpp"
#include "vmm/cli/values.hpp"
#include "vmm/network/port_forward.hpp"

namespace vmm {

namespace {

using Kind = DeviceWord::Kind;

using devices::kDiskIoKinds;
using limits::kSectorBytes;

const std::vector<std::string>& switch_words() {
    static const std::vector<std::string> kWords{"on", "off"};
    return kWords;
}

/// "; on unless said otherwise"
std::string unless_said(std::string_view standard) {
    return "; " + std::string(standard) + " unless said otherwise";
}

const std::string& switch_word(bool is_on) {
    return switch_words().at(is_on ? 0 : 1);
}

std::vector<DeviceWord> disk_words() {
    constexpr Limits kQueues{1, DiskConfig::kMaxQueues};
    const DiskConfig standard;
    const std::vector<std::string> sectors = names_of(kSectorBytes);
    const std::vector<std::string> io_kinds = names_of(kDiskIoKinds);
    return {
        {.name = "path", .kind = Kind::kFirst, .help = "A raw image or a block device"},
        {.name = "ro", .kind = Kind::kFlag, .help = "The guest may only read it"},
        {.name = "direct", .kind = Kind::kFlag, .help = "Past the host's page cache (O_DIRECT)"},
        {.name = "sector",
         .kind = Kind::kNumber,
         .help = "The size of the guest's sectors in bytes: " + listed(sectors) +
                 unless_said(std::to_string(standard.sector_bytes)),
         .choices = sectors},
        {.name = "io",
         .help = "How the host does its I/O: " + listed(io_kinds) + unless_said(to_string(standard.io)),
         .choices = io_kinds},
        {.name = "queues", .kind = Kind::kNumber, .help = "Request queues, " + to_string(kQueues), .limits = kQueues},
        {.name = "id",
         .help = "The serial number the guest sees, at most " + std::to_string(DiskConfig::kMaxIdBytes) + " characters",
         .form = "STR",
         .most_bytes = DiskConfig::kMaxIdBytes},
        {.name = "lock",
         .kind = Kind::kSwitch,
         .help = "Whether the file is locked against a second writer" + unless_said(switch_word(standard.lock)),
         .choices = switch_words()},
        {.name = "moderation",
         .kind = Kind::kSwitch,
         .help = "Whether an interrupt may wait for a few others" + unless_said(switch_word(standard.moderation)),
         .choices = switch_words()},
    };
}

std::vector<DeviceWord> net_words() {
    constexpr Limits kQueues{1, NetConfig::kMaxQueues};
    constexpr const char* kForward = "([0-9.]+/)?[0-9]{1,5}(:[0-9]{1,5})?";
    return {
        {.name = "tap",
         .help = "The tap interface of the host that it is connected to",
         .form = "NAME",
         .pattern = "[^,]+",
         .is_kind = true},
        {.name = "user",
         .kind = Kind::kFlag,
         .help = "Instead of a tap: through the program passt, without privileges",
         .is_kind = true},
        {.name = "mac",
         .help = "The guest's address: 52:54:00:12:34:56",
         .form = "MAC",
         .pattern = "[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}"},
        {.name = "queues",
         .kind = Kind::kNumber,
         .help = "With tap: pairs of queues, each with a thread of its own, " + to_string(kQueues),
         .limits = kQueues},
        {.name = "tcp",
         .kind = Kind::kTexts,
         .help = "With user: a port of the host, and of the guest: [ADDRESS/]PORT[:PORT]",
         .form = "[ADDR/]PORT[:PORT]",
         .pattern = kForward},
        {.name = "udp", .kind = Kind::kTexts, .help = "The same for UDP", .form = "...", .pattern = kForward},
        {.name = "host-loopback",
         .kind = Kind::kFlag,
         .help = "With user: the guest reaches the host itself, too: its addresses, and by the gateway's its loopback "
                 "interface"},
    };
}

std::vector<DeviceWord> vsock_words() {
    constexpr Limits kCids{VsockConfig::kMinCid, VsockConfig::kMaxCid};
    return {
        {.name = "path",
         .kind = Kind::kFirst,
         .help = "The unix socket that programs on the host connect to; it does not end in '_' and a number"},
        {.name = "cid", .kind = Kind::kNumber, .help = "The guest's address, " + to_string(kCids), .limits = kCids},
    };
}

std::vector<DeviceWord> balloon_words() {
    return {
        {.name = "size",
         .kind = Kind::kFirst,
         .help = "How much memory the guest is asked to do without",
         .pattern = std::string(kSizePattern)},
        {.name = "reporting", .kind = Kind::kFlag, .help = "The guest also says which pages are free, again and again"},
    };
}

std::vector<DeviceWord> memory_from_words() {
    return {
        {.name = "path", .kind = Kind::kFirst, .help = "The unix socket of a pool (`vmm pool`)"},
        {.name = "fallback",
         .kind = Kind::kFlag,
         .help = "What the pool has not is ordinary memory, instead of an error"},
    };
}

/// Returns "=512|4096", or nothing for a flag.
std::string usage_of_value(const DeviceWord& word) {
    if (word.kind == Kind::kFlag) {
        return {};
    }
    return "=" + (word.choices.empty() ? word.form.empty() ? "N" : word.form : form_of(word.choices));
}

/// Returns "PATH[,ro][,queues=N]".
std::string usage_of(const std::vector<DeviceWord>& words) {
    std::string usage;
    for (const DeviceWord& word : words) {
        if (word.kind == Kind::kFirst) {
            std::ranges::transform(word.name, std::back_inserter(usage),
                                   [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
        } else if (word.is_kind) {
            usage += (usage.empty() ? "" : "|") + word.name + usage_of_value(word);
        } else {
            usage += "[," + word.name + usage_of_value(word) + "]";
        }
    }
    return usage;
}

DeviceSyntax syntax(std::string option, bool is_repeated, std::vector<DeviceWord> words) {
    std::string usage = usage_of(words);
    return {std::move(option), is_repeated, std::move(words), std::move(usage)};
}

/// An expression for the value of one word. A comma within it is written twice.
std::string value_pattern(const DeviceWord& word) {
    if (!word.choices.empty()) {
        return "(" + form_of(word.choices) + ")";
    }
    if (word.kind == Kind::kNumber) {
        return "[0-9]+";
    }
    if (!word.pattern.empty()) {
        return word.pattern;
    }
    const std::string times = word.most_bytes != 0        ? "{0," + std::to_string(word.most_bytes) + "}"
                              : word.kind == Kind::kFirst ? "+"
                                                          : "*";
    return "([^,]|,,)" + times;
}

/// Splits a text at single commas. Two commas stand for one comma within a word.
std::vector<std::string> split_words(std::string_view text) {
    std::vector<std::string> words(1);
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] != ',') {
            words.back().push_back(text[i]);
        } else if (i + 1 < text.size() && text[i + 1] == ',') {
            words.back().push_back(',');
            ++i;
        } else {
            words.emplace_back();
        }
    }
    return words;
}

/// Parses a whole number. `what` names the counted things in the message. Throws Error.
template <typename Number = unsigned>
Number number_of(std::string_view text, const char* what) {
    Number number = 0;
    const char* const end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data(), end, number);
    if (error != std::errc{} || rest != end) {
        throw Error("'" + std::string(text) + "' is no " + what);
    }
    return number;
}

/// The value of the switch `word`. Throws Error.
bool is_on(std::string_view text, const char* word) {
    const std::vector<std::string>& words = switch_words();
    const auto found = std::ranges::find(words, text);
    if (found == words.end()) {
        throw Error("'" + std::string(text) + "' is no value of '" + word + "': " + joined(words));
    }
    return found == words.begin();
}

/// Throws Error.
unsigned sector_bytes_of(std::string_view text) {
    for (const unsigned bytes : kSectorBytes) {
        if (text == std::to_string(bytes)) {
            return bytes;
        }
    }
    throw Error("'" + std::string(text) + "' is no size of a disk's sectors: " + joined(names_of(kSectorBytes)));
}

/// Throws Error.
devices::DiskIoKind disk_io_kind_of(std::string_view text) {
    for (const devices::DiskIoKind kind : kDiskIoKinds) {
        if (text == to_string(kind)) {
            return kind;
        }
    }
    throw Error("'" + std::string(text) + "' is no way of doing a disk's I/O: " + joined(names_of(kDiskIoKinds)));
}

/// The words of one device. All of them are known, and none occurs too often.
class Words {
  public:
    /// Throws Error if a word is unknown, or occurs twice.
    Words(std::string_view option, const std::string& text) {
        const DeviceSyntax* const syntax = find_device_syntax(option);
        assert(syntax != nullptr);
        std::vector<std::string> words = split_words(text);
        auto rest = words.begin();
        if (syntax->words.front().kind == Kind::kFirst) {
            values_[syntax->words.front().name].push_back(*rest++);
        }
        for (; rest != words.end(); ++rest) {
            take(*syntax, *rest);
        }
    }

    [[nodiscard]] bool has(std::string_view name) const { return values_.contains(name); }
    [[nodiscard]] std::string value(std::string_view name) const { return has(name) ? values_.at(name).front() : ""; }
    [[nodiscard]] std::vector<std::string> values(std::string_view name) const {
        return has(name) ? values_.at(name) : std::vector<std::string>{};
    }

  private:
    void take(const DeviceSyntax& syntax, const std::string& word) {
        const std::size_t equals = word.find('=');
        const bool has_value = equals != std::string::npos;
        const std::string_view name = std::string_view(word).substr(0, equals);
        const auto known = std::ranges::find_if(syntax.words, [&](const DeviceWord& each) {
            return each.name == name && each.kind != Kind::kFirst && (each.kind == Kind::kFlag) != has_value;
        });
        if (known == syntax.words.end()) {
            const bool escapes = syntax.words.front().kind == Kind::kFirst && syntax.words.front().name == "path";
            throw Error("'" + word + "' is not known here (" + syntax.usage +
                        (escapes ? "; a comma in PATH is written twice)" : ")"));
        }
        std::vector<std::string>& values = values_[known->name];
        if (!values.empty() && known->kind != Kind::kTexts) {
            throw Error("'" + std::string(name) + "' is there twice");
        }
        values.push_back(has_value ? word.substr(equals + 1) : "");
    }

    std::map<std::string_view, std::vector<std::string>> values_; ///< their keys are those of the syntax
};

} // namespace

std::string device_pattern(const DeviceSyntax& syntax) {
    std::string first;
    std::string others;
    for (const DeviceWord& word : syntax.words) {
        if (word.kind == Kind::kFirst) {
            first = value_pattern(word);
        } else {
            others += (others.empty() ? "" : "|") + word.name;
            others += word.kind == Kind::kFlag ? "" : "=" + value_pattern(word);
        }
    }
    others = "(" + others + ")";
    return "^" + (first.empty() ? others : first) + "(," + others + ")*$";
}

std::span<const DeviceSyntax> device_syntaxes() {
    static const std::array kSyntaxes{
        syntax("disk", true, disk_words()),
        syntax("net", true, net_words()),
        syntax("vsock", false, vsock_words()),
        syntax("balloon", false, balloon_words()),
        syntax("memory-from", false, memory_from_words()),
    };
    return kSyntaxes;
}

const DeviceSyntax* find_device_syntax(std::string_view option) {
    const auto syntaxes = device_syntaxes();
    const auto found = std::ranges::find_if(syntaxes, [&](const DeviceSyntax& each) { return each.option == option; });
    return found != syntaxes.end() ? &*found : nullptr;
}

DiskConfig parse_disk_option(const std::string& text) {
    const Words words("disk", text);
    DiskConfig disk;
    disk.path = words.value("path");
    if (disk.path.empty()) {
        throw Error("'" + text + "' names no file");
    }
    disk.read_only = words.has("ro");
    disk.direct = words.has("direct");
    if (words.has("sector")) {
        disk.sector_bytes = sector_bytes_of(words.value("sector"));
    }
    if (words.has("io")) {
        disk.io = disk_io_kind_of(words.value("io"));
    }
    if (words.has("queues")) {
        disk.queues = number_of(words.value("queues"), "number of queues");
    }
    disk.id = words.value("id");
    if (words.has("lock")) {
        disk.lock = is_on(words.value("lock"), "lock");
    }
    if (words.has("moderation")) {
        disk.moderation = is_on(words.value("moderation"), "moderation");
    }
    return disk;
}

NetConfig parse_net_option(const std::string& text) {
    const Words words("net", text);
    NetConfig net;
    net.tap = words.value("tap");
    net.user = words.has("user");
    net.mac = words.value("mac");
    if (words.has("queues")) {
        net.queues = number_of(words.value("queues"), "number of queues");
    }
    net.host_loopback = words.has("host-loopback");
    for (const bool udp : {false, true}) {
        for (const std::string& forward : words.values(udp ? "udp" : "tcp")) {
            net.forwards.push_back(parse_port_forward(forward, udp));
        }
    }
    if (net.user && words.has("tap")) {
        throw Error("'" + text + "' names a tap interface, and 'user', which has none");
    }
    if (!net.user && net.tap.empty()) {
        throw Error("'" + text + "' names no tap interface (tap=NAME), nor is it 'user'");
    }
    if (!net.user && (!net.forwards.empty() || net.host_loopback)) {
        throw Error("'" + text + "' has a word that goes with 'user' only (tcp, udp, host-loopback)");
    }
    return net;
}

VsockConfig parse_vsock_option(const std::string& text) {
    const Words words("vsock", text);
    VsockConfig vsock;
    vsock.path = words.value("path");
    if (vsock.path.empty()) {
        throw Error("'" + text + "' names no unix socket");
    }
    if (words.has("cid")) {
        vsock.cid = number_of(words.value("cid"), "CID");
    }
    return vsock;
}

MemoryFrom parse_memory_from_option(const std::string& text) {
    const Words words("memory-from", text);
    MemoryFrom from{words.value("path"), words.has("fallback")};
    if (from.path.empty()) {
        throw Error("'" + text + "' names no unix socket");
    }
    return from;
}

BalloonConfig parse_balloon_option(const std::string& text) {
    const Words words("balloon", text);
    const auto size = parse_size(words.value("size"));
    if (!size) {
        throw Error("'" + words.value("size") + "' is no size (a whole number and K, M, G or T)");
    }
    return {*size, words.has("reporting")};
}

} // namespace vmm
