// Which folder may include which, as a function of one file's text. The folders from the bottom up: kvm/host; kvm,
// devices, loader, prefault/host; prefault; vmm.
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace vmm::layering {

/// One `#include` line.
struct Include {
    std::string path;
    bool quoted; ///< "..." rather than <...>
};

/// The include in one line of source, or nothing.
[[nodiscard]] inline std::optional<Include> parse_include(std::string_view line) {
    const auto skip_blanks = [&line] { line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size())); };
    const auto skip = [&line](std::string_view word) {
        const bool there = line.starts_with(word);
        line.remove_prefix(there ? word.size() : 0);
        return there;
    };
    skip_blanks();
    if (!skip("#")) {
        return std::nullopt;
    }
    skip_blanks();
    if (!skip("include")) {
        return std::nullopt;
    }
    skip_blanks();
    if (line.empty() || (line.front() != '"' && line.front() != '<')) {
        return std::nullopt;
    }
    const bool quoted = line.front() == '"';
    const auto end = line.find(quoted ? '"' : '>', 1);
    return Include{std::string(line.substr(1, end == std::string_view::npos ? end : end - 1)), quoted};
}

constexpr std::array<std::string_view, 5> kFolders{"kvm", "devices", "loader", "prefault", "vmm"};

/// "kvm" of "kvm/host/error.hpp"; nothing if the path is not in a folder of ours.
[[nodiscard]] inline std::optional<std::string_view> folder_of(std::string_view path) {
    const auto folder = path.substr(0, std::min(path.find('/'), path.size()));
    const bool ours = path.find('/') != std::string_view::npos && std::ranges::find(kFolders, folder) != kFolders.end();
    return ours ? std::optional(folder) : std::nullopt;
}

/// What the files of one room below vmm/ may include, beside that room.
struct Room {
    std::string_view files; ///< what their paths begin with
    bool is_closed;         ///< false: it may also include the headers of vmm/ itself, and all under vmm/
    std::array<std::string_view, 9> known; ///< what the paths of other headers begin with; empty: no more
};

/// The first row whose `files` fit counts.
constexpr std::array kRooms{
    Room{"vmm/bench/", false, {"vmm/guest/guest_image.hpp", "vmm/host/", "vmm/machine/", "vmm/output/"}},
    Room{"vmm/cli/",
         false,
         {"vmm/bench/", "vmm/control/", "vmm/host/", "vmm/machine/", "vmm/migration/", "vmm/network/", "vmm/output/",
          "vmm/sandbox/", "vmm/state/"}},
    Room{"vmm/control/", false, {"vmm/network/"}},
    Room{"vmm/guest/", true, {}}, // It is no host program.
    Room{"vmm/host/",
         false,
         {"vmm/machine/custom_devices.hpp", "vmm/machine/memory_map.hpp", "vmm/machine/virtio_devices.hpp",
          "vmm/machine/x86/", "vmm/network/user_network.hpp"}},
    Room{"vmm/machine/",
         false,
         {"vmm/guest/guest_image.hpp", "vmm/host/", "vmm/migration/", "vmm/network/",
          "vmm/output/nonblocking_output.hpp", "vmm/sandbox/", "vmm/state/"}},
    Room{"vmm/migration/", false, {"vmm/host/", "vmm/state/"}},
    Room{"vmm/network/", false, {"vmm/host/child_process.hpp"}},
    Room{"vmm/output/", false, {}},
    Room{"vmm/package/", false, {"vmm/cli/"}}, // The manual shows the command's options.
    Room{"vmm/sandbox/filters/", true, {"kvm/host/", "kvm/uapi.hpp", "vmm/sandbox/"}},
    Room{"vmm/sandbox/",
         true,
         {"kvm/host/", "vmm/config.hpp", "vmm/host/child_process.hpp", "vmm/state/snapshot_files.hpp"}},
    Room{"vmm/state/", false, {"vmm/machine/memory_map.hpp", "vmm/machine/x86/"}},
    Room{"vmm/tls/", true, {"vmm/migration/tls_files.hpp"}},
    Room{"vmm/", false, {"vmm/host/", "vmm/machine/", "vmm/migration/", "vmm/network/"}}};

/// Why `file`, which is below vmm/, may not include `path`; empty if it may.
[[nodiscard]] inline std::string why_not_in_room(std::string_view file, std::string_view path) {
    constexpr std::string_view kTop = "vmm/";
    const auto& room = *std::ranges::find_if(kRooms, [&](const Room& one) { return file.starts_with(one.files); });
    const bool is_of_room = path.starts_with(kTop) && path.find('/', kTop.size()) != std::string_view::npos;
    if ((room.files != kTop && path.starts_with(room.files)) || (!room.is_closed && !is_of_room)) {
        return {};
    }
    const bool known = std::ranges::any_of(
        room.known, [&](std::string_view begin) { return !begin.empty() && path.starts_with(begin); });
    return known ? std::string() : std::string(room.files) + " does not know it";
}

/// Why `file` (a path from the root of the source tree) may not include the header `path` of ours; empty if it may.
[[nodiscard]] inline std::string why_not_ours(std::string_view file, std::string_view path) {
    const auto from = folder_of(file);
    const auto to = folder_of(path);
    if (!from || !to) {
        return "name the header from the root of the source tree";
    }
    if (*from == "vmm") {
        return why_not_in_room(file, path);
    }
    if (file.starts_with("kvm/host/") && !path.starts_with("kvm/host/")) {
        return "the host under KVM knows nothing of KVM";
    }
    // A plan and its progress are values that both folders share.
    if (file.starts_with("prefault/host/") && !path.starts_with("prefault/host/") && !path.starts_with("kvm/host/") &&
        path != "prefault/plan.hpp" && path != "prefault/progress.hpp") {
        return "what prefault does with the host's memory knows nothing of KVM";
    }
    if (*from == *to || (*from == "prefault" && *to == "kvm")) {
        return {};
    }
    if ((*from == "devices" || *from == "loader") && *to == "kvm") {
        return path.starts_with("kvm/host/") ? "" : "only kvm/host/ is for " + std::string(*from) + "/";
    }
    return std::string(*from) + "/ does not know " + std::string(*to) + "/";
}

/// Why `file` may not include the foreign header `path`; empty if it may.
[[nodiscard]] inline std::string why_not_foreign(std::string_view file, std::string_view path) {
    struct Place {
        std::string_view header;                 ///< what the path begins with
        std::array<std::string_view, 2> allowed; ///< what a file that may include it begins with
    };
    constexpr std::array kPlaces{Place{"linux/kvm.h", {"kvm/uapi.hpp", "kvm/uapi.hpp"}},
                                 Place{"CLI/", {"vmm/cli/command_line.cpp", "vmm/cli/command_line.cpp"}},
                                 Place{"boost/", {"vmm/control/http.cpp", "vmm/control/http.cpp"}},
                                 Place{"openssl/", {"vmm/tls/", "vmm/tls/"}},
                                 Place{"libfdt", {"loader/device_tree.", "loader/device_tree."}},
                                 Place{"seccomp.h", {"vmm/sandbox/filters/", "vmm/sandbox/filters/"}},
                                 Place{"liburing", {"devices/uring_disk_io.", "prefault/host/longterm_pin."}},
                                 Place{"numa.h", {"prefault/host/numa.", "prefault/host/numa."}},
                                 Place{"numaif.h", {"prefault/host/numa.", "prefault/host/numa."}}};
    for (const Place& place : kPlaces) {
        if (path.starts_with(place.header) && !file.starts_with(place.allowed[0]) &&
            !file.starts_with(place.allowed[1])) {
            return "only " + std::string(place.allowed[0]) + " may include it";
        }
    }
    return folder_of(path) ? "a header of ours goes between quotes" : "";
}

/// All wrong includes of a file, each as a line for people.
[[nodiscard]] inline std::vector<std::string> violations(const std::string& file, const std::string& text) {
    std::vector<std::string> found;
    std::istringstream lines(text);
    std::string line;
    for (unsigned number = 1; std::getline(lines, line); ++number) {
        const auto include = parse_include(line);
        if (!include) {
            continue;
        }
        const std::string why =
            include->quoted ? why_not_ours(file, include->path) : why_not_foreign(file, include->path);
        if (!why.empty()) {
            found.push_back(file + ":" + std::to_string(number) + " includes " + include->path + ": " + why);
        }
    }
    return found;
}

} // namespace vmm::layering
