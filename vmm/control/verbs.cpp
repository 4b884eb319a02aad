#include "vmm/control/verbs.hpp"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <span>
#include <sstream>
#include <utility>

#include <nlohmann/json.hpp>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/guest_address.hpp"
#include "kvm/host/text.hpp"
#include "prefault/options.hpp"
#include "vmm/control/log_levels.hpp"
#include "vmm/limits.hpp"
#include "vmm/machine.hpp"
#include "vmm/migration.hpp"
#include "vmm/network/port_forward.hpp"

namespace vmm::control {

namespace {

using Json = nlohmann::ordered_json;
using Kind = Parameter::Kind;
using Place = Parameter::Place;

/// The largest number that every JSON parser keeps exactly (RFC 8259, 6).
constexpr std::uint64_t kMostExact = (std::uint64_t{1} << 53U) - 1;
constexpr std::uint64_t kMostSecondsToStop = 3600;
constexpr std::uint64_t kMostSecondsToPause = 3600;

/// The names of `values`.
template <typename Values>
std::vector<std::string> words_of(const Values& values) {
    std::vector<std::string> words;
    for (const auto value : values) {
        using std::to_string;
        words.emplace_back(to_string(value));
    }
    return words;
}

Parameter job_id() {
    return {.name = "id",
            .kind = Kind::kNumber,
            .help = "The number of the job",
            .place = Place::kPath,
            .is_required = true,
            .is_positional = true,
            .least = 1,
            .most = kMostExact,
            .example = "1"};
}

std::vector<Parameter> stop_parameters() {
    return {{.name = "within",
             .kind = Kind::kNumber,
             .help = "Seconds that the guest has to switch itself off, before it is stopped by force",
             .most = kMostSecondsToStop,
             .standard = "20",
             .example = "20"},
            {.name = "force", .kind = Kind::kFlag, .help = "Stop the guest at once, without its power button"}};
}

std::vector<Parameter> memory_parameters() {
    return {{.name = "size",
             .kind = Kind::kBytes,
             .help = "How much in all, with what it began with",
             .is_required = true,
             .is_positional = true,
             .least = 1,
             .most = kMostExact,
             .example = "536870912"},
            {.name = "within",
             .kind = Kind::kNumber,
             .help = "Seconds that the guest has for it, before the action fails; it may still follow later",
             .most = kMostSecondsToStop,
             .standard = "60",
             .example = "1"}};
}

std::vector<Parameter> pause_parameters() {
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(Machine::kPausePatience).count();
    return {{.name = "within",
             .kind = Kind::kNumber,
             .help = "Seconds that the devices have to finish what they have with the host; if one has not finished "
                     "then, the guest goes on",
             .most = kMostSecondsToPause,
             .standard = std::to_string(seconds),
             .example = std::to_string(seconds)}};
}

std::vector<Parameter> snapshot_parameters() {
    std::vector<Parameter> parameters{
        {.name = "directory",
         .kind = Kind::kPath,
         .help = "The directory, which must not be there",
         .is_required = true,
         .is_positional = true,
         .example = "\"/var/lib/vmm/guest1\""},
        {.name = "resume", .kind = Kind::kFlag, .help = "Let the guest go on when the snapshot is taken"},
        {.name = "incremental_to",
         .kind = Kind::kPath,
         .help = "Another snapshot: what is the same there is not written again, and both are needed to go on"},
        {.name = "workers",
         .kind = Kind::kNumber,
         .help = "Threads that write memory",
         .least = 1,
         .most = prefault::kMaxWorkers,
         .standard = "the machine's",
         .example = "2"}};
    const std::vector<Parameter> of_pause = pause_parameters();
    parameters.insert(parameters.end(), of_pause.begin(), of_pause.end());
    return parameters;
}

std::vector<Parameter> migrate_parameters() {
    const MigrationOptions standard;
    constexpr std::uint64_t kMostMilliseconds = 60'000;
    constexpr std::uint64_t kMostSeconds = 86'400;
    std::vector<Parameter> parameters{
        {.name = "address",
         .kind = Kind::kAddress,
         .help = "Where `vmm run --incoming` waits: unix:PATH or tcp:HOST:PORT",
         .is_required = true,
         .is_positional = true,
         .example = "\"unix:/run/vmm/guest1.incoming\""},
        {.name = "streams",
         .kind = Kind::kNumber,
         .help = "Connections that memory goes through, each with a thread",
         .least = 1,
         .most = MigrationOptions::kMostStreams,
         .standard = std::to_string(standard.streams),
         .example = "2"},
        {.name = "downtime",
         .kind = Kind::kNumber,
         .help = "Milliseconds that the guest may stand still",
         .least = 1,
         .most = kMostMilliseconds,
         .standard = std::to_string(standard.downtime.count()),
         .example = "100"},
        {.name = "timeout",
         .kind = Kind::kNumber,
         .help = "Seconds that all of it may take; 0: as many as it takes",
         .most = kMostSeconds,
         .standard = "0",
         .example = "600"},
        {.name = "on_timeout",
         .kind = Kind::kChoice,
         .help = "What is done then: the guest stays here, or stands still for as long as the rest takes",
         .choices = words_of(kOnTimeouts),
         .standard = std::string(to_string(standard.on_timeout))},
        {.name = "bandwidth",
         .kind = Kind::kBytes,
         .help = "Most bytes a second that go over the wire, over all streams",
         .least = MigrationOptions::kLeastBytesPerSecond,
         .most = kMostExact,
         .standard = "no limit"},
        {.name = "compress",
         .kind = Kind::kChoice,
         .help = "Whether pages are compressed: never, always, or where it is worth it",
         .choices = words_of(kCompressions),
         .standard = std::string(to_string(standard.compression))},
        {.name = "throttle",
         .kind = Kind::kNumber,
         .help = "Most of their time, in percent, that vCPUs are held if the guest changes memory too fast; 0: never",
         .most = MigrationOptions::kMostThrottledPercent,
         .standard = std::to_string(standard.most_throttled_percent)},
        {.name = "post_copy_after",
         .kind = Kind::kNumber,
         .help =
             "After so many rounds over memory the guest goes over, and waits there for what it touches; from then on "
             "a connection that is cut loses the guest. 0: never",
         .most = 1000,
         .standard = "0"},
        {.name = "tls",
         .kind = Kind::kPath,
         .help = "A directory with ca-cert.pem, client-cert.pem and client-key.pem: both ends prove who they are"},
        {.name = "insecure",
         .kind = Kind::kFlag,
         .help = "Let the guest go to another host without TLS: whoever is in between can read and change it"}};
    const std::vector<Parameter> of_pause = pause_parameters();
    parameters.insert(parameters.end(), of_pause.begin(), of_pause.end());
    return parameters;
}

std::vector<Parameter> prefault_parameters() {
    using prefault::Scope;
    return {{.name = "scope",
             .kind = Kind::kChoice,
             .help = "What to populate: host memory, or the second level, too",
             .choices = words_of(std::span(prefault::kScopes).subspan(1)), // kNone populates nothing.
             .standard = std::string(to_string(Scope::kAll)),
             .example = "\"all\""},
            {.name = "method",
             .kind = Kind::kChoice,
             .help = "How the second level is filled",
             .choices = words_of(prefault::kMethods),
             .standard = "the machine's"},
            {.name = "workers",
             .kind = Kind::kNumber,
             .help = "Threads that populate, and prefault vCPUs",
             .least = 1,
             .most = prefault::kMaxWorkers,
             .standard = "the machine's",
             .example = "2"}};
}

std::vector<Parameter> disk_parameters() {
    const DiskConfig standard;
    return {{.name = "path",
             .kind = Kind::kPath,
             .help = "The image or block device",
             .is_required = true,
             .is_positional = true,
             .example = "\"/var/lib/vmm/disk.img\""},
            {.name = "read_only", .kind = Kind::kFlag, .help = "Whether the guest may only read it"},
            {.name = "direct", .kind = Kind::kFlag, .help = "Whether I/O bypasses the host's page cache (O_DIRECT)"},
            {.name = "queues",
             .kind = Kind::kNumber,
             .help = "Queues of requests",
             .least = 1,
             .most = limits::kMaxDiskQueues,
             .standard = std::to_string(standard.queues)},
            {.name = "sector",
             .kind = Kind::kChoice,
             .help = "The size of the sectors that the guest sees, in bytes",
             .choices = words_of(limits::kSectorBytes),
             .standard = std::to_string(standard.sector_bytes)},
            {.name = "moderation",
             .kind = Kind::kChoice,
             .help = "Whether an interrupt may wait for a few others",
             .choices = {"on", "off"},
             .standard = standard.moderation ? "on" : "off"},
            {.name = "id",
             .kind = Kind::kName,
             .help = "The serial number that the guest sees",
             .most = limits::kMaxDiskIdBytes}};
}

std::vector<Parameter> net_parameters() {
    constexpr std::uint64_t kMostInterfaceBytes = 15; // IFNAMSIZ, without its NUL
    constexpr std::uint64_t kMacCharacters = 17;
    constexpr std::uint64_t kMostForwards = 1024;
    const NetConfig standard;
    return {
        {.name = "tap",
         .kind = Kind::kName,
         .help = "The tap interface of the host's",
         .is_positional = true,
         .most = kMostInterfaceBytes,
         .example = "\"tap1\""},
        {.name = "user",
         .kind = Kind::kFlag,
         .help = "Instead of a tap interface: through the program passt, without privileges"},
        {.name = "mac",
         .kind = Kind::kName,
         .help = "The address that the guest has on that network",
         .most = kMacCharacters,
         .standard = "made from the name of the interface",
         .example = "\"52:54:00:00:00:01\""},
        {.name = "queues",
         .kind = Kind::kNumber,
         .help = "Pairs of queues, each with a thread of its own",
         .least = 1,
         .most = limits::kMaxNetQueues,
         .standard = std::to_string(standard.queues)},
        {.name = "tcp",
         .kind = Kind::kPorts,
         .help = "With --user: ports of the host, and of the guest: [ADDRESS/]PORT[:PORT][,...]",
         .most = kMostForwards},
        {.name = "udp", .kind = Kind::kPorts, .help = "The same for UDP", .most = kMostForwards},
        {.name = "host_loopback", .kind = Kind::kFlag, .help = "With --user: the guest reaches the host itself, too"}};
}

std::vector<Parameter> removal_parameters(const std::string& example) {
    constexpr std::uint64_t kMostNameBytes = 15; // virtio::Identity::name
    return {{.name = "name",
             .kind = Kind::kName,
             .help = "The device, as the status names it",
             .is_required = true,
             .is_positional = true,
             .most = kMostNameBytes,
             .example = "\"" + example + "\""},
            {.name = "within",
             .kind = Kind::kNumber,
             .help = "Seconds that the guest has to give it back",
             .most = kMostSecondsToStop,
             .standard = "20",
             .example = "20"}};
}

std::vector<Verb> make_verbs() {
    const Parameter target{.name = "target",
                           .kind = Kind::kBytes,
                           .help = "How much memory the guest is asked to do without, in bytes",
                           .is_required = true,
                           .is_positional = true,
                           .most = kMostExact,
                           .example = "67108864"};
    const Parameter at{.name = "at",
                       .kind = Kind::kBytes,
                       .help = "The guest-physical address at which the memory begins",
                       .is_required = true,
                       .is_positional = true,
                       .most = kMostExact,
                       .example = "68719476736"};
    const Parameter size{.name = "size",
                         .kind = Kind::kBytes,
                         .help = "How much memory is added, in bytes",
                         .is_required = true,
                         .is_positional = true,
                         .least = 1,
                         .most = kMostExact,
                         .example = "67108864"};
    const Parameter since{.name = "since",
                          .kind = Kind::kNumber,
                          .help = "The number of the first event that is wanted",
                          .place = Place::kQuery,
                          .least = 1,
                          .most = kMostExact,
                          .standard = "1",
                          .example = "1"};
    const Parameter follow{.name = "follow",
                           .kind = Kind::kFlag,
                           .help = "Whether the answer goes on with what happens next",
                           .place = Place::kQuery,
                           .example = "false"};
    const Parameter level{.name = "level",
                          .kind = Kind::kChoice,
                          .help = "What is said at the terminal, and what is more important",
                          .is_required = true,
                          .is_positional = true,
                          .choices = log_level_names(),
                          .example = "\"info\""};
    return {
        {.name = "status",
         .method = "GET",
         .path = "/status",
         .help = "State, configuration and devices of the machine",
         .answer = "Status"},
        {.name = "statistics",
         .method = "GET",
         .path = "/statistics",
         .help = "Faults and exits of each vCPU, what KVM has mapped, and the devices' counters",
         .answer = "Statistics"},
        {.name = "metrics",
         .method = "GET",
         .path = "/metrics",
         .help = "The same as text for Prometheus",
         .content_type = "text/plain; version=0.0.4; charset=utf-8"},
        {.name = "pause",
         .method = "POST",
         .path = "/pause",
         .help = "Hold the guest: no vCPU runs and no device works until resume",
         .parameters = pause_parameters(),
         .answer = "State"},
        {.name = "resume", .method = "POST", .path = "/resume", .help = "Let the guest go on", .answer = "State"},
        {.name = "stop",
         .method = "POST",
         .path = "/stop",
         .help = "Press the guest's power button, and stop it by force if it has not switched itself off in time; a "
                 "paused guest goes on for that",
         .parameters = stop_parameters(),
         .status = 202,
         .answer = "Job"},
        {.name = "reset",
         .method = "POST",
         .path = "/reset",
         .help = "End the machine as a guest does that resets itself: whoever runs it starts it again",
         .status = 202,
         .answer = "State"},
        {.name = "prefault",
         .method = "POST",
         .path = "/prefault",
         .help = "Populate all of guest memory, now or again",
         .parameters = prefault_parameters(),
         .status = 202,
         .answer = "Job"},
        {.name = "balloon",
         .method = "POST",
         .path = "/balloon",
         .help = "Ask the guest to do without so much of its memory (needs --balloon)",
         .parameters = {target},
         .answer = "Balloon"},
        {.name = "memory",
         .method = "POST",
         .path = "/memory",
         .help = "Ask the guest to have so much memory, and wait until it has (needs --memory SIZE,max=SIZE)",
         .parameters = memory_parameters(),
         .status = 202,
         .answer = "Job"},
        {.name = "add-memory",
         .method = "POST",
         .path = "/add-memory",
         .help = "Add guest-physical memory and populate it; the guest is not told",
         .parameters = {at, size},
         .status = 202,
         .answer = "Job"},
        {.name = "add-disk",
         .method = "POST",
         .path = "/add-disk",
         .help = "Give the guest another disk on its PCI bus; `vmm ctl` opens it and hands it over",
         .parameters = disk_parameters(),
         .status = 202,
         .answer = "Job"},
        {.name = "remove-disk",
         .method = "POST",
         .path = "/remove-disk",
         .help = "Ask the guest to do without a disk, and wait until it does",
         .parameters = removal_parameters("blk1"),
         .status = 202,
         .answer = "Job"},
        {.name = "add-net",
         .method = "POST",
         .path = "/add-net",
         .help =
             "Connect the guest to another network on its PCI bus; `vmm ctl` opens the interface, or starts passt, and "
             "hands it over",
         .parameters = net_parameters(),
         .status = 202,
         .answer = "Job"},
        {.name = "remove-net",
         .method = "POST",
         .path = "/remove-net",
         .help = "Ask the guest to do without a network, and wait until it does",
         .parameters = removal_parameters("net1"),
         .status = 202,
         .answer = "Job"},
        {.name = "snapshot",
         .method = "POST",
         .path = "/snapshot",
         .help = "Save the machine in a directory, which is made for it, and hold the guest; `vmm run --restore` goes "
                 "on from there",
         .parameters = snapshot_parameters(),
         .status = 202,
         .answer = "Job"},
        {.name = "migrate",
         .method = "POST",
         .path = "/migrate",
         .help = "Move the guest to another vmm, which waits for it by `vmm run --incoming`, while it runs",
         .parameters = migrate_parameters(),
         .status = 202,
         .answer = "Job"},
        {.name = "jobs", .method = "GET", .path = "/jobs", .help = "All jobs, running and ended", .answer = "Jobs"},
        {.name = "job",
         .method = "GET",
         .path = "/jobs/{id}",
         .help = "One job",
         .parameters = {job_id()},
         .answer = "Job"},
        {.name = "cancel",
         .method = "DELETE",
         .path = "/jobs/{id}",
         .help = "Ask a job to end early",
         .parameters = {job_id()},
         .answer = "Job"},
        {.name = "events",
         .method = "GET",
         .path = "/events",
         .help = "What has happened, a line of JSON for each event",
         .parameters = {since, follow},
         .content_type = "application/x-ndjson"},
        {.name = "log-level",
         .method = "GET",
         .path = "/log-level",
         .help = "How much is said at the terminal",
         .answer = "LogLevel"},
        {.name = "set-log-level",
         .method = "PUT",
         .path = "/log-level",
         .help = "Say more, or less",
         .parameters = {level},
         .answer = "LogLevel"},
        {.name = "api-schema",
         .method = "GET",
         .path = "/openapi.json",
         .help = "The OpenAPI document of all this",
         .answer = "Document"},
    };
}

/// Thrown for a wrong request, with its answer.
struct Wrong {
    HttpAnswer answer;
};

Wrong wrong(unsigned status, std::string_view text) {
    return {error_answer(status, text)};
}

std::string quoted(const std::string& text) {
    constexpr std::size_t kMostQuoted = 80;
    return "'" + text.substr(0, kMostQuoted) + (text.size() > kMostQuoted ? "...'" : "'");
}

std::string names_of(const Verb& verb, Place place) {
    std::vector<std::string> names;
    for (const Parameter& parameter : verb.parameters) {
        if (parameter.place == place) {
            names.push_back(parameter.name);
        }
    }
    return names.empty() ? "it takes none" : "it takes " + joined(names);
}

Wrong wrong_value(const Parameter& parameter) {
    return wrong(400, parameter.name + " has a value that it cannot have (give " + what_it_takes(parameter) + ")");
}

bool is_migration_address(const std::string& word) {
    try {
        const MigrationAddress address = MigrationAddress::parse(word);
        return address.kind == MigrationAddress::Kind::kTcp || address.path.starts_with('/');
    } catch (const Error&) {
        return false;
    }
}

bool are_ports(const std::string& word) {
    try {
        return !parse_port_forwards(word, false).empty();
    } catch (const Error&) {
        return false;
    }
}

bool may_be(const Parameter& parameter, const std::string& word) {
    if (parameter.kind == Kind::kPorts) {
        return word.size() <= parameter.most && are_ports(word);
    }
    if (parameter.kind == Kind::kPath) {
        return word.starts_with('/') && word.size() <= Parameter::kMostPathBytes &&
               word.find('\0') == std::string::npos;
    }
    if (parameter.kind == Kind::kAddress) {
        return is_migration_address(word);
    }
    if (parameter.kind == Kind::kName) {
        return !word.empty() && word.size() <= parameter.most &&
               std::ranges::all_of(word, [](char c) { return c > ' ' && c <= '~' && c != '/'; });
    }
    return std::ranges::find(parameter.choices, word) != parameter.choices.end();
}

Arguments::Value checked(const Parameter& parameter, Arguments::Value value) {
    if (const auto* const number = std::get_if<std::uint64_t>(&value);
        number != nullptr && (*number < parameter.least || *number > parameter.most)) {
        throw wrong_value(parameter);
    }
    if (const auto* const word = std::get_if<std::string>(&value); word != nullptr && !may_be(parameter, *word)) {
        throw wrong_value(parameter);
    }
    return value;
}

Arguments::Value value_of(const Parameter& parameter, const Json& json) {
    switch (parameter.kind) {
    case Kind::kFlag:
        if (json.is_boolean()) {
            return json.get<bool>();
        }
        break;
    case Kind::kNumber:
    case Kind::kBytes:
        if (json.is_number_unsigned()) {
            return checked(parameter, json.get<std::uint64_t>());
        }
        break;
    case Kind::kChoice:
    case Kind::kName:
    case Kind::kPorts:
    case Kind::kPath:
    case Kind::kAddress:
        if (json.is_string()) {
            return checked(parameter, json.get<std::string>());
        }
        break;
    }
    throw wrong_value(parameter);
}

Arguments::Value value_of(const Parameter& parameter, const std::string& text) {
    switch (parameter.kind) {
    case Kind::kFlag:
        if (text == "true" || text == "false") {
            return text == "true";
        }
        break;
    case Kind::kNumber:
    case Kind::kBytes: {
        std::uint64_t number = 0;
        const char* const end = text.data() + text.size();
        if (const auto [last, error] = std::from_chars(text.data(), end, number); error == std::errc() && last == end) {
            return checked(parameter, number);
        }
        break;
    }
    case Kind::kChoice:
    case Kind::kName:
    case Kind::kPorts:
    case Kind::kPath:
    case Kind::kAddress:
        return checked(parameter, text);
    }
    throw wrong_value(parameter);
}

const Parameter* find_parameter(const Verb& verb, Place place, const std::string& name) {
    const auto found = std::ranges::find_if(verb.parameters, [&](const Parameter& parameter) {
        return parameter.place == place && parameter.name == name;
    });
    return found != verb.parameters.end() ? &*found : nullptr;
}

void take_query(const Verb& verb, const std::string& query, Arguments& arguments) {
    std::istringstream in(query);
    for (std::string pair; std::getline(in, pair, '&');) {
        const std::size_t equals = pair.find('=');
        const std::string name = pair.substr(0, equals);
        const Parameter* const parameter = find_parameter(verb, Place::kQuery, name);
        if (parameter == nullptr) {
            throw wrong(400, verb.name + " has no query parameter " + quoted(name) + " (" +
                                 names_of(verb, Place::kQuery) + ")");
        }
        arguments.set(name, value_of(*parameter, equals == std::string::npos ? "" : pair.substr(equals + 1)));
    }
}

void take_body(const Verb& verb, const std::string& body, Arguments& arguments) {
    if (body.find_first_not_of(" \t\r\n") == std::string::npos) {
        return;
    }
    constexpr int kMostDepth = 4; // no valid body is nested
    bool is_deep = false;
    const Json json = Json::parse(
        body,
        [&is_deep](int depth, Json::parse_event_t, const Json&) {
            is_deep = is_deep || depth > kMostDepth;
            return !is_deep;
        },
        false);
    if (json.is_discarded() || is_deep || !json.is_object()) {
        throw wrong(400, "the body of the request is no JSON object (send {} or nothing if there is nothing to say)");
    }
    for (const auto& [name, value] : json.items()) {
        const Parameter* const parameter = find_parameter(verb, Place::kBody, name);
        if (parameter == nullptr) {
            throw wrong(400, verb.name + " has no member " + quoted(name) + " in its body (" +
                                 names_of(verb, Place::kBody) + ")");
        }
        arguments.set(name, value_of(*parameter, value));
    }
}

bool has(const Arguments& arguments, const Parameter& parameter) {
    switch (parameter.kind) {
    case Kind::kFlag:
        return true;
    case Kind::kNumber:
    case Kind::kBytes:
        return arguments.number(parameter.name).has_value();
    case Kind::kChoice:
    case Kind::kName:
    case Kind::kPorts:
    case Kind::kPath:
    case Kind::kAddress:
        return arguments.word(parameter.name).has_value();
    }
    return false;
}

/// Returns the text in `path` at the place of the braces in `form`; nothing if they do not match. Without braces it
/// returns "".
std::optional<std::string> match(const std::string& form, const std::string& path) {
    const std::size_t open = form.find('{');
    if (open == std::string::npos) {
        return form == path ? std::optional(std::string()) : std::nullopt;
    }
    if (path.size() <= open || !path.starts_with(form.substr(0, open)) || path.find('/', open) != std::string::npos) {
        return std::nullopt;
    }
    return path.substr(open);
}

/// `allowed` are the methods that it can be asked for by.
Wrong wrong_method(const HttpRequest& request, const std::string& allowed) {
    Wrong refused =
        wrong(405, request.path + " cannot be asked for by " + quoted(request.method) + " (send " + allowed + ")");
    refused.answer.allow = allowed;
    return refused;
}

Call call_of(const HttpRequest& request) {
    std::vector<std::string> methods;
    for (const Verb& verb : verbs()) {
        const auto in_path = match(verb.path, request.path);
        if (!in_path) {
            continue;
        }
        methods.push_back(verb.method);
        if (verb.method != request.method && !(verb.method == "GET" && request.method == "HEAD")) {
            continue;
        }
        Call call{&verb};
        for (const Parameter& parameter : verb.parameters) {
            if (parameter.place == Place::kPath) {
                call.arguments.set(parameter.name, value_of(parameter, *in_path));
            }
        }
        take_query(verb, request.query, call.arguments);
        take_body(verb, request.body, call.arguments);
        for (const Parameter& parameter : verb.parameters) {
            if (parameter.is_required && !has(call.arguments, parameter)) {
                throw wrong(400, verb.name + " needs " + parameter.name + " (give " + what_it_takes(parameter) + ")");
            }
        }
        return call;
    }
    if (methods.empty()) {
        throw wrong(404, "there is nothing at " + quoted(request.path) + " (GET /openapi.json says what there is)");
    }
    throw wrong_method(request, joined(methods));
}

} // namespace

std::string what_it_takes(const Parameter& parameter) {
    switch (parameter.kind) {
    case Kind::kFlag:
        return "true or false";
    case Kind::kNumber:
    case Kind::kBytes:
        return vmm::format("a whole number from {} to {}", parameter.least, parameter.most);
    case Kind::kChoice:
        return "one of " + joined(parameter.choices);
    case Kind::kName:
        return vmm::format("1 to {} letters, digits and signs", parameter.most);
    case Kind::kPorts:
        return "[ADDRESS/]PORT[:PORT][,...]";
    case Kind::kAddress:
        return "unix:PATH or tcp:HOST:PORT";
    case Kind::kPath:
        return "a name that begins with /, of at most " + std::to_string(Parameter::kMostPathBytes) + " bytes";
    }
    return {};
}

std::span<const Verb> verbs() {
    static const std::vector<Verb> kTable = make_verbs();
    return kTable;
}

const Verb* find_verb(std::string_view name) {
    const auto table = verbs();
    const auto found = std::ranges::find(table, name, &Verb::name);
    return found != table.end() ? &*found : nullptr;
}

std::optional<std::uint64_t> Arguments::number(const std::string& name) const {
    const auto found = values_.find(name);
    return found != values_.end() ? std::optional(std::get<std::uint64_t>(found->second)) : std::nullopt;
}

std::optional<std::string> Arguments::word(const std::string& name) const {
    const auto found = values_.find(name);
    return found != values_.end() ? std::optional(std::get<std::string>(found->second)) : std::nullopt;
}

bool Arguments::flag(const std::string& name, bool standard) const {
    const auto found = values_.find(name);
    return found != values_.end() ? std::get<bool>(found->second) : standard;
}

std::variant<Call, HttpAnswer> understand(const HttpRequest& request) {
    try {
        return call_of(request);
    } catch (const Wrong& refused) {
        return refused.answer;
    }
}

nlohmann::ordered_json example_body(const Verb& verb) {
    Json body = Json::object();
    for (const Parameter& parameter : verb.parameters) {
        if (parameter.place == Place::kBody && !parameter.example.empty()) {
            body[parameter.name] = Json::parse(parameter.example);
        }
    }
    return body;
}

} // namespace vmm::control
