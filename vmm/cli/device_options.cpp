#include "vmm/cli/device_options.hpp"

#include <algorithm>
#include <array>
#include <cassert>
#include <charconv>
#include <map>
#include <optional>
#include <system_error>
#include <vector>

#include "kvm/host/error.hpp"
#include "vmm/cli/values.hpp"

namespace vmm {

namespace {

using Kind = DeviceWord::Kind;

constexpr std::array kDiskWords{
    DeviceWord{"path", Kind::kFirst, "A raw image or a block device"},
    DeviceWord{"ro", Kind::kFlag, "The guest may only read it"},
    DeviceWord{"direct", Kind::kFlag, "Past the host's page cache (O_DIRECT)"},
    DeviceWord{"sector", Kind::kNumber,
               "The size of the guest's sectors in bytes: 512 or 4096; 512 unless said otherwise"},
    DeviceWord{"io", Kind::kText, "How the host does its I/O: auto, uring or threads; auto unless said otherwise"},
    DeviceWord{"queues", Kind::kNumber, "Request queues, 1 to 16"},
    DeviceWord{"id", Kind::kText, "The serial number the guest sees, at most 20 characters"},
    DeviceWord{"lock", Kind::kSwitch, "Whether the file is locked against a second writer; on unless said otherwise"},
};
constexpr std::array kNetWords{
    DeviceWord{"tap", Kind::kText, "The tap interface of the host's it is connected to"},
    DeviceWord{"user", Kind::kFlag, "Instead of a tap: through the program passt, without privileges"},
    DeviceWord{"mac", Kind::kText, "The guest's address: 52:54:00:12:34:56"},
    DeviceWord{"tcp", Kind::kTexts, "With user: a port of the host's, and of the guest's: [ADDRESS/]PORT[:PORT]"},
    DeviceWord{"udp", Kind::kTexts, "The same for UDP"},
    DeviceWord{"host-loopback", Kind::kFlag,
               "With user: the guest reaches the host itself, too: its addresses, and by the gateway's its loopback "
               "interface"},
};
constexpr std::array kVsockWords{
    DeviceWord{"path", Kind::kFirst,
               "The unix socket that programs on the host connect to; it does not end in '_' and a number"},
    DeviceWord{"cid", Kind::kNumber, "The guest's address, 3 to 4294967294"},
};
constexpr std::array kBalloonWords{
    DeviceWord{"size", Kind::kFirst, "How much memory the guest is asked to do without"},
    DeviceWord{"reporting", Kind::kFlag, "The guest also says which pages are free, again and again"},
};
constexpr std::array kSyntaxes{
    DeviceSyntax{"disk",
                 "PATH[,ro][,direct][,sector=512|4096][,io=auto|uring|threads][,queues=N][,id=STR][,lock=on|off]", true,
                 kDiskWords},
    DeviceSyntax{"net", "tap=NAME|user[,mac=MAC][,tcp=[ADDR/]PORT[:PORT]][,udp=...][,host-loopback]", true, kNetWords},
    DeviceSyntax{"vsock", "PATH[,cid=N]", false, kVsockWords},
    DeviceSyntax{"balloon", "SIZE[,reporting]", false, kBalloonWords},
};

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

/// A whole number; `what` it is of goes into the message. Throws Error.
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

/// The value of a word that is on or off. Throws Error.
bool is_on(std::string_view text, const char* word) {
    if (text != "on" && text != "off") {
        throw Error("'" + std::string(text) + "' is no value of '" + word + "': on, off");
    }
    return text == "on";
}

/// Throws Error.
unsigned sector_bytes_of(std::string_view text) {
    if (text != "512" && text != "4096") {
        throw Error("'" + std::string(text) + "' is no size of a disk's sectors: 512, 4096");
    }
    return text == "512" ? 512 : 4096;
}

/// Throws Error.
devices::DiskIoKind disk_io_kind_of(std::string_view text) {
    for (const auto kind : {devices::DiskIoKind::kAuto, devices::DiskIoKind::kUring, devices::DiskIoKind::kThreads}) {
        if (text == to_string(kind)) {
            return kind;
        }
    }
    throw Error("'" + std::string(text) + "' is no way of doing a disk's I/O: auto, uring, threads");
}

/// The words of one device, each of them known, and there only as often as it may be.
class Words {
  public:
    /// Throws Error.
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
        const auto known = std::find_if(syntax.words.begin(), syntax.words.end(), [&](const DeviceWord& each) {
            return each.name == name && each.kind != Kind::kFirst && (each.kind == Kind::kFlag) != has_value;
        });
        if (known == syntax.words.end()) {
            const bool escapes = syntax.words.front().kind == Kind::kFirst && syntax.words.front().name == "path";
            throw Error("'" + word + "' is not known here (" + std::string(syntax.usage) +
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

/// "[ADDRESS/]PORT[:PORT]"
PortForward parse_port_forward(const std::string& text, bool udp) {
    PortForward forward;
    forward.udp = udp;
    std::string_view ports = text;
    if (const std::size_t slash = ports.find('/'); slash != std::string_view::npos) {
        forward.host_address = ports.substr(0, slash);
        ports.remove_prefix(slash + 1);
    }
    const std::size_t colon = ports.find(':');
    const auto port_of = [&text](std::string_view number) {
        const auto port = number_of<std::uint16_t>(number, "port, 1 to 65535");
        if (port == 0) {
            throw Error("'" + text + "': 0 is no port, 1 to 65535");
        }
        return port;
    };
    forward.host_port = port_of(ports.substr(0, colon));
    forward.guest_port = colon == std::string_view::npos ? forward.host_port : port_of(ports.substr(colon + 1));
    return forward;
}

} // namespace

std::span<const DeviceSyntax> device_syntaxes() noexcept {
    return kSyntaxes;
}

const DeviceSyntax* find_device_syntax(std::string_view option) noexcept {
    const auto* const found = std::find_if(kSyntaxes.begin(), kSyntaxes.end(),
                                           [&](const DeviceSyntax& syntax) { return syntax.option == option; });
    return found != kSyntaxes.end() ? found : nullptr;
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
    return disk;
}

NetConfig parse_net_option(const std::string& text) {
    const Words words("net", text);
    NetConfig net;
    net.tap = words.value("tap");
    net.user = words.has("user");
    net.mac = words.value("mac");
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

BalloonConfig parse_balloon_option(const std::string& text) {
    const Words words("balloon", text);
    const auto size = parse_size(words.value("size"));
    if (!size) {
        throw Error("'" + words.value("size") + "' is no size (a whole number and K, M, G or T)");
    }
    return {*size, words.has("reporting")};
}

} // namespace vmm
