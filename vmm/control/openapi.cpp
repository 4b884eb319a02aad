#include "vmm/control/openapi.hpp"

#include <algorithm>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "kvm/host/text.hpp"
#include "vmm/control/log_levels.hpp"
#include "vmm/control/verbs.hpp"
#include "vmm/statistics.hpp"
#include "vmm/version.hpp"

namespace vmm::control {

namespace {

using Json = nlohmann::ordered_json;
using Place = Parameter::Place;

Json text(const char* description) {
    return {{"type", "string"}, {"description", description}};
}

Json count(const char* description) {
    return {{"type", "integer"}, {"format", "int64"}, {"minimum", 0}, {"description", description}};
}

Json one_of(std::vector<std::string> words, const char* description) {
    return {{"type", "string"}, {"enum", std::move(words)}, {"description", description}};
}

Json reference(const std::string& schema) {
    return {{"$ref", "#/components/schemas/" + schema}};
}

Json list_of(Json items) {
    return {{"type", "array"}, {"items", std::move(items)}};
}

/// The schema of an object with exactly these members. Those in `optional` may be missing.
Json object(const char* description, Json members, std::initializer_list<std::string_view> optional = {}) {
    Json required = Json::array();
    for (const auto& [name, schema] : members.items()) {
        if (std::ranges::find(optional, name) == optional.end()) {
            required.push_back(name);
        }
    }
    return {{"type", "object"},
            {"description", description},
            {"additionalProperties", false},
            {"required", std::move(required)},
            {"properties", std::move(members)}};
}

Json answer_schemas() {
    std::vector<std::string> run_states;
    for (const RunState each : kRunStates) {
        run_states.emplace_back(to_string(each));
    }
    const Json state = one_of(std::move(run_states), "How far the life of the machine has come");
    Json schemas;
    schemas["Error"] = object("Why a request was refused, or failed",
                              {{"error", text("What was tried, and why it did not work")},
                               {"advice", text("What the caller can do about it; empty if nothing is known")}});
    schemas["State"] = object("What the machine is doing", {{"state", state}});
    schemas["Status"] = object(
        "The machine",
        {{"version", text("The version of vmm")},
         {"process", count("The id of the process")},
         {"state", state},
         {"vcpus", count("Virtual CPUs")},
         {"memory_bytes", count("Memory that the machine was made with")},
         {"page_size", text("The pages behind guest memory")},
         {"events", count("How many events there have been")},
         {"devices", list_of(object("A virtio device", {{"name", text("As in the statistics: blk0")}}))},
         {"config",
          {{"type", "object"},
           {"description", "The options that were given, in the form of a configuration file (docs/config.md)"}}}});
    schemas["Statistics"] = object(
        "What has been counted",
        {{"state", state},
         {"vcpus", list_of(object("A vCPU, since the guest began",
                                  {{"exits", count("How often KVM left the guest")},
                                   {"second_level_faults", count("Mappings that KVM made on its behalf")}}))},
         {"memory", object("The guest's memory, without what was added of which it is not told",
                           {{"bytes", count("What it began with, and what it has plugged")},
                            {"requested_bytes", count("What it is asked to have")},
                            {"max_bytes", count("What it can be given")}})},
         {"mapped", object("What the second level maps of guest memory", {{"pages_4k", count("Mappings of 4 KiB")},
                                                                          {"pages_2m", count("Mappings of 2 MiB")},
                                                                          {"pages_1g", count("Mappings of 1 GiB")},
                                                                          {"bytes", count("All of them together")}})},
         {"devices",
          list_of(object("A virtio device", {{"name", text("blk0")},
                                             {"counters",
                                              {{"type", "object"},
                                               {"description", "Counters by name, since the device was made"},
                                               {"additionalProperties", count("A counter")}}}}))}});
    schemas["Job"] =
        object("An action that takes long",
               {{"id", count("Its number")},
                {"kind", text("The verb that began it")},
                {"state", one_of({"running", "done", "failed", "cancelled"}, "How far it is")},
                {"progress", object("How far it has come",
                                    {{"stage", text("What it is doing; empty if it does not say")},
                                     {"done", count("Of the total")},
                                     {"total", count("0 if it is not known")},
                                     {"details", {{"type", "object"}, {"description", "What else there is to say"}}}},
                                    {"details"})},
                {"error", text("Why it failed")},
                {"advice", text("What the caller can do about that")},
                {"result", {{"type", "object"}, {"description", "What it did, once it has ended"}}}},
               {"error", "advice", "result"});
    schemas["Jobs"] = object("All jobs", {{"jobs", list_of(reference("Job"))}});
    schemas["Balloon"] = object("The balloon", {{"target_bytes", count("How much the guest is asked for")}});
    schemas["LogLevel"] =
        object("How much is said", {{"level", one_of(log_level_names(), "The least important lines that are said")}});
    schemas["Event"] = {{"type", "object"},
                        {"description", "Something that happened. Other members depend on the event."},
                        {"required", {"event"}},
                        {"properties",
                         {{"sequence", count("Its number, from 1 on")},
                          {"time", {{"type", "number"}, {"description", "Seconds since 1970"}}},
                          {"event", one_of({"started", "paused", "resumed", "full", "mappings", "guest-panic", "ended",
                                            "job", "snapshot", "migrated", "balloon", "memory", "memory-changed",
                                            "memory-added", "device-added", "device-removed", "log-level", "missed"},
                                           "What happened")}}}};
    schemas["Document"] = {{"type", "object"}, {"description", "An OpenAPI document"}};
    return schemas;
}

Json schema_of(const Parameter& parameter) {
    Json schema;
    switch (parameter.kind) {
    case Parameter::Kind::kFlag:
        schema = {{"type", "boolean"}};
        break;
    case Parameter::Kind::kNumber:
    case Parameter::Kind::kBytes:
        schema = {{"type", "integer"}, {"format", "int64"}, {"minimum", parameter.least}, {"maximum", parameter.most}};
        break;
    case Parameter::Kind::kChoice:
        schema = {{"type", "string"}, {"enum", parameter.choices}};
        break;
    case Parameter::Kind::kName:
        schema = {{"type", "string"}, {"pattern", "^[!-.0-~]+$"}, {"maxLength", parameter.most}};
        break;
    case Parameter::Kind::kPorts:
        schema = {{"type", "string"}, {"pattern", "^[0-9./:,]+$"}, {"maxLength", parameter.most}};
        break;
    case Parameter::Kind::kAddress:
        schema = {{"type", "string"}, {"pattern", "^(unix:/|tcp:).+$"}};
        break;
    case Parameter::Kind::kPath:
        schema = {{"type", "string"}, {"pattern", "^/"}, {"maxLength", Parameter::kMostPathBytes}};
        break;
    }
    return schema;
}

std::string words_of(const Parameter& parameter) {
    return parameter.help + (parameter.standard.empty() ? "" : ". Default: " + parameter.standard);
}

Json parameters_of(const Verb& verb) {
    Json parameters = Json::array();
    for (const Parameter& parameter : verb.parameters) {
        if (parameter.place == Place::kBody) {
            continue;
        }
        Json one = {{"name", parameter.name},
                    {"in", parameter.place == Place::kPath ? "path" : "query"},
                    {"required", parameter.is_required},
                    {"description", words_of(parameter)},
                    {"schema", schema_of(parameter)}};
        if (!parameter.example.empty()) {
            one["example"] = Json::parse(parameter.example);
        }
        parameters.push_back(std::move(one));
    }
    return parameters;
}

/// The schema of the request's body; null if the verb takes none.
Json body_of(const Verb& verb) {
    Json members = Json::object();
    Json required = Json::array();
    for (const Parameter& parameter : verb.parameters) {
        if (parameter.place != Place::kBody) {
            continue;
        }
        members[parameter.name] = schema_of(parameter);
        members[parameter.name]["description"] = words_of(parameter);
        if (parameter.is_required) {
            required.push_back(parameter.name);
        }
    }
    if (members.empty()) {
        return nullptr;
    }
    Json schema = {{"type", "object"}, {"additionalProperties", false}, {"properties", members}};
    const bool is_required = !required.empty();
    if (is_required) {
        schema["required"] = std::move(required);
    }
    return {{"required", is_required},
            {"content", {{"application/json", {{"schema", schema}, {"example", example_body(verb)}}}}}};
}

Json answers_of(const Verb& verb) {
    const Json error = {{"application/json", {{"schema", reference("Error")}}}};
    const std::string type = verb.content_type.substr(0, verb.content_type.find(';'));
    const Json schema = !verb.answer.empty() ? reference(verb.answer) : Json{{"type", "string"}};
    Json answers;
    answers[std::to_string(verb.status)] = {{"description", verb.status == 202 ? "It has begun" : "It is done"},
                                            {"content", {{type, {{"schema", schema}}}}}};
    answers["4XX"] = {{"description", "The request is wrong, or the machine does not allow it now"},
                      {"content", error}};
    answers["5XX"] = {{"description", "The host failed"}, {"content", error}};
    return answers;
}

} // namespace

std::string openapi_document() {
    Json document = {
        {"openapi", "3.0.3"},
        {"info",
         {{"title", "The control socket of vmm"},
          {"description", "What `vmm run --api SOCKET` serves. Made from the table of verbs by `vmm api-schema`."},
          {"version", kVersion},
          {"license", {{"name", "Apache-2.0"}}}}},
        {"servers", Json::array({{{"url", "http://localhost"}, {"description", "Over the unix socket"}}})}};
    for (const Verb& verb : verbs()) {
        Json operation = {{"operationId", verb.name}, {"summary", verb.help}};
        if (Json parameters = parameters_of(verb); !parameters.empty()) {
            operation["parameters"] = std::move(parameters);
        }
        if (Json body = body_of(verb); !body.is_null()) {
            operation["requestBody"] = std::move(body);
        }
        operation["responses"] = answers_of(verb);
        document["paths"][verb.path][lower_case(verb.method)] = std::move(operation);
    }
    document["components"]["schemas"] = answer_schemas();
    return document.dump(4) + "\n";
}

} // namespace vmm::control
