#include "vmm/device_options.hpp"

#include <charconv>
#include <optional>
#include <string_view>
#include <system_error>
#include <vector>

#include "kvm/error.hpp"

namespace vmm {

namespace {

/// The words between single commas; of two commas one stays.
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

/// The value of "key=value"; nothing where `word` has another key.
std::optional<std::string> value_of(const std::string& word, std::string_view key) {
    if (word.size() > key.size() && word.starts_with(key) && word[key.size()] == '=') {
        return word.substr(key.size() + 1);
    }
    return std::nullopt;
}

/// A whole number; `what` it is of goes into the message. Throws Error.
unsigned number_of(const std::string& text, const char* what) {
    unsigned number = 0;
    const char* const end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data(), end, number);
    if (error != std::errc{} || rest != end) {
        throw Error("'" + text + "' is no " + what);
    }
    return number;
}

[[noreturn]] void refuse(const std::string& word, const std::string& known) {
    throw Error("'" + word + "' is not known here (" + known + ")");
}

} // namespace

DiskConfig parse_disk_option(const std::string& text) {
    const std::vector<std::string> words = split_words(text);
    DiskConfig disk;
    disk.path = words.front();
    if (disk.path.empty()) {
        throw Error("'" + text + "' names no file");
    }
    for (std::size_t i = 1; i < words.size(); ++i) {
        const std::string& word = words[i];
        if (word == "ro") {
            disk.read_only = true;
        } else if (word == "direct") {
            disk.direct = true;
        } else if (const auto queues = value_of(word, "queues")) {
            disk.queues = number_of(*queues, "number of queues");
        } else if (const auto id = value_of(word, "id")) {
            disk.id = *id;
        } else {
            refuse(word, "PATH[,ro][,direct][,queues=N][,id=STR]; a comma in PATH is written twice");
        }
    }
    return disk;
}

NetConfig parse_net_option(const std::string& text) {
    NetConfig net;
    for (const std::string& word : split_words(text)) {
        if (const auto tap = value_of(word, "tap")) {
            net.tap = *tap;
        } else if (const auto mac = value_of(word, "mac")) {
            net.mac = *mac;
        } else {
            refuse(word, "tap=NAME[,mac=MAC]");
        }
    }
    if (net.tap.empty()) {
        throw Error("'" + text + "' names no tap interface (tap=NAME[,mac=MAC])");
    }
    return net;
}

VsockConfig parse_vsock_option(const std::string& text) {
    const std::vector<std::string> words = split_words(text);
    VsockConfig vsock;
    vsock.path = words.front();
    if (vsock.path.empty()) {
        throw Error("'" + text + "' names no unix socket");
    }
    for (std::size_t i = 1; i < words.size(); ++i) {
        if (const auto cid = value_of(words[i], "cid")) {
            vsock.cid = number_of(*cid, "CID");
        } else {
            refuse(words[i], "PATH[,cid=N]; a comma in PATH is written twice");
        }
    }
    return vsock;
}

} // namespace vmm
