#include "vmm/cli/run_control.hpp"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include <nlohmann/json.hpp>

#include "devices/disk_image.hpp"
#include "kvm/host/error.hpp"
#include "vmm/cli/control_options.hpp"
#include "vmm/control/client.hpp"
#include "vmm/control/device_arguments.hpp"
#include "vmm/control/verbs.hpp"
#include "vmm/device_configs.hpp"
#include "vmm/network/opened_net.hpp"
#include "vmm/output/patient_write.hpp"

namespace vmm {

namespace {

using control::Client;
using control::ClientAnswer;
using Json = nlohmann::ordered_json;

constexpr unsigned kFirstRefusal = 400;

/// Returns a text without control characters for a terminal.
std::string without_controls(const std::string& text) {
    std::string safe = text;
    std::ranges::replace_if(
        safe, [](char c) { return static_cast<unsigned char>(c) < ' ' || c == 0x7f; }, '?');
    return safe;
}

std::string value_in_words(const Json& value) {
    if (value.is_string()) {
        return without_controls(value.get<std::string>());
    }
    if (value.is_boolean()) {
        return value.get<bool>() ? "yes" : "no";
    }
    return value.dump();
}

std::string name_in_words(std::string name) {
    std::ranges::replace(name, '_', ' ');
    return without_controls(name);
}

void add_lines(const Json& value, const std::string& indent, std::string& text);

void add_line(const std::string& name, const Json& value, const std::string& indent, std::string& text) {
    if (!value.is_structured()) {
        text += indent + name + ": " + value_in_words(value) + "\n";
    } else if (value.empty()) {
        text += indent + name + ": none\n";
    } else {
        text += indent + name + ":\n";
        add_lines(value, indent + "  ", text);
    }
}

/// Adds a line for each member of an object, or for each element of a list. Elements are numbered unless they have a
/// name.
void add_lines(const Json& value, const std::string& indent, std::string& text) {
    if (value.is_object()) {
        for (const auto& [name, member] : value.items()) {
            add_line(name_in_words(name), member, indent, text);
        }
        return;
    }
    std::size_t number = 0;
    for (const Json& element : value) {
        if (element.is_object() && element.contains("name")) {
            Json rest = element;
            rest.erase("name");
            add_line(value_in_words(element["name"]), rest, indent, text);
        } else {
            add_line(std::to_string(number), element, indent, text);
        }
        ++number;
    }
}

/// Parses an object; returns an empty one if `text` is none.
Json parse(const std::string& text) {
    const Json json = Json::parse(text, nullptr, false);
    return json.is_object() ? json : Json::object();
}

std::string member(const Json& json, const char* name) {
    const auto found = json.find(name);
    return found != json.end() && found->is_string() ? without_controls(found->get<std::string>()) : std::string();
}

/// Prints a refusal as the machine gave it.
int refused(const ControlCommand& command, const std::string& body) {
    if (command.json) {
        static_cast<void>(print_result(body));
        return exit_codes::kHostFailed;
    }
    const Json json = parse(body);
    const std::string advice = member(json, "advice");
    print_message("vmm ctl: " + member(json, "error") + (advice.empty() ? "" : " (" + advice + ")") + "\n");
    return exit_codes::kHostFailed;
}

int print(const std::string& text, int status = exit_codes::kSuccess) {
    return print_result(text) ? status : exit_codes::kHostFailed;
}

int print_answer(const ControlCommand& command, const std::string& body) {
    const Json json = Json::parse(body, nullptr, false);
    const bool is_shown_as_it_is =
        command.json || !json.is_object() || command.verb == "metrics" || command.verb == "api-schema";
    return print(is_shown_as_it_is ? body : in_words(json));
}

bool begins_job(const std::string& verb) {
    const control::Verb* const found = control::find_verb(verb);
    return found != nullptr && found->answer == "Job" && found->status == 202;
}

/// Whether a job that has ended did all that it was asked for.
bool is_done(const Json& job) {
    return member(job, "state") == "done" && (!job.contains("result") || job["result"].value("complete", true));
}

/// What the events tell about a job.
struct JobEnd {
    bool has_ended = false;    ///< the job has ended
    std::string machine_ended; ///< why the machine ended; empty if it did not before the job
    Json migrated{};           ///< the report of a migration, if the guest has gone
};

/// Reads `events` until the job or the machine has ended. If the job ends the machine, it is done when the machine has
/// ended.
JobEnd wait_for_job(control::LineStream& events, std::uint64_t id, bool ends_machine) {
    JobEnd end;
    while (const auto line = events.next()) {
        const Json event = parse(*line);
        if (member(event, "event") == "ended") {
            end.machine_ended = member(event, "reason");
            break;
        }
        if (member(event, "event") == "migrated") {
            end.migrated = event;
            break;
        }
        if (member(event, "event") == "job" && event.value("id", std::uint64_t{0}) == id) {
            end.has_ended = true;
            if (!ends_machine || member(event, "state") != "done") {
                break;
            }
        }
    }
    return end;
}

/// The descriptors that a request hands over, because a confined machine opens nothing. They stay open until the
/// machine has them.
class HandedOver {
  public:
    /// Opens what `request` needs. Throws Error as the machine would.
    explicit HandedOver(const ControlRequest& request) {
        const auto understood = control::understand({request.method, request.target, "", request.body});
        const auto* const call = std::get_if<control::Call>(&understood);
        if (call == nullptr) { // the machine says what is wrong with it
            return;
        }
        if (call->verb->name == "add-disk") {
            const DiskConfig disk = control::disk_config_of(call->arguments);
            disk_ = devices::DiskImage::open(disk.path, {.read_only = disk.read_only, .direct = disk.direct});
            for (const UniqueFd* const fd : {&disk_.file, &disk_.tail}) {
                if (*fd) {
                    descriptors_.push_back(fd->get());
                }
            }
        } else if (call->verb->name == "add-net") {
            net_ = OpenedNet::open(control::net_config_of(call->arguments));
            descriptors_ = net_.descriptors();
        }
    }
    [[nodiscard]] const std::vector<int>& descriptors() const { return descriptors_; }

  private:
    devices::DiskImage::Opened disk_;
    OpenedNet net_;
    std::vector<int> descriptors_;
};

ClientAnswer ask(const Client& client, const ControlRequest& request) {
    const HandedOver handed_over(request);
    return client.ask(request.method, request.target, request.body, handed_over.descriptors());
}

/// Begins a job and waits for its end. It asks for the events first, so that it misses none, even if the machine ends
/// soon.
int do_job(const ControlCommand& command, const Client& client, const ControlRequest& request) {
    control::LineStream events = client.follow("/events?follow=true");
    if (events.status() >= kFirstRefusal) {
        return refused(command, events.refusal());
    }
    if (parse(request.body).value("post_copy_after", std::uint64_t{0}) != 0) {
        print_message("vmm ctl: the guest may go over before all of its memory has: from then on a connection that is "
                      "cut loses it\n");
    }
    const ClientAnswer begun = ask(client, request);
    if (begun.status >= kFirstRefusal) {
        return refused(command, begun.body);
    }
    const std::uint64_t id = parse(begun.body).value("id", std::uint64_t{0});
    const bool ends_machine = command.verb == "stop";
    const JobEnd end = wait_for_job(events, id, ends_machine);
    if (command.verb == "migrate" && end.migrated.is_object()) { // the machine may have gone already
        Json result = end.migrated;
        for (const char* const of_event : {"sequence", "time", "event"}) {
            result.erase(of_event);
        }
        return print(command.json ? result.dump() + "\n" : in_words(result));
    }
    if (ends_machine && !end.machine_ended.empty()) {
        return print(command.json ? Json{{"ended", end.machine_ended}}.dump() + "\n"
                                  : "ended: " + end.machine_ended + "\n");
    }
    if (!end.has_ended) {
        throw control::NobodyThere("the machine ended before the job did" +
                                   (end.machine_ended.empty() ? "" : ": " + end.machine_ended));
    }
    const ClientAnswer answer = client.ask("GET", "/jobs/" + std::to_string(id));
    if (answer.status >= kFirstRefusal) {
        return refused(command, answer.body);
    }
    const Json job = parse(answer.body);
    return print(command.json ? answer.body : in_words(job),
                 is_done(job) ? exit_codes::kSuccess : exit_codes::kHostFailed);
}

int follow_events(const ControlCommand& command, const Client& client, const std::string& target) {
    control::LineStream events = client.follow(target);
    if (events.status() >= kFirstRefusal) {
        return refused(command, events.refusal());
    }
    while (const auto line = events.next()) {
        if (!print_result(*line + "\n")) {
            return exit_codes::kHostFailed;
        }
    }
    return exit_codes::kSuccess;
}

} // namespace

std::string in_words(const Json& answer) {
    std::string text;
    add_lines(answer, "", text);
    return text;
}

namespace {

/// The time that the request gives the machine.
std::chrono::seconds time_to_answer(const ControlRequest& request) {
    const Json body = Json::parse(request.body, nullptr, false);
    return std::chrono::seconds(body.is_object() ? body.value("within", std::uint64_t{0}) : 0);
}

} // namespace

int run_control(const ControlCommand& command) {
    const ControlRequest request = request_of(command);
    const Client client(command.socket, time_to_answer(request));
    try {
        if (command.verb == "events") {
            return follow_events(command, client, request.target);
        }
        if (begins_job(command.verb) && command.wait) {
            return do_job(command, client, request);
        }
        const ClientAnswer answer = ask(client, request);
        if (answer.status >= kFirstRefusal) {
            return refused(command, answer.body);
        }
        return print_answer(command, answer.body);
    } catch (const control::NobodyThere& error) {
        print_message("vmm ctl: " + std::string(error.what()) + "\n");
        return exit_codes::kNobodyThere;
    }
}

} // namespace vmm
