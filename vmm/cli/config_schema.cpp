#include "vmm/cli/config_schema.hpp"

#include <nlohmann/json.hpp>

#include "vmm/cli/device_options.hpp"

namespace vmm {

namespace {

using Json = nlohmann::ordered_json;

Json word() {
    return {{"type", Json::array({"string", "integer"})}};
}

Json schema_of(const DeviceWord& device_word) {
    Json schema;
    switch (device_word.kind) {
    case DeviceWord::Kind::kFirst:
    case DeviceWord::Kind::kText:
        schema = word();
        break;
    case DeviceWord::Kind::kFlag:
        schema = {{"type", "boolean"}};
        break;
    case DeviceWord::Kind::kSwitch:
        schema = {{"enum", Json::array({true, false, "on", "off"})}};
        break;
    case DeviceWord::Kind::kNumber:
        schema = {{"type", "integer"}, {"minimum", 0}};
        break;
    case DeviceWord::Kind::kTexts:
        schema = {{"anyOf", Json::array({word(), {{"type", "array"}, {"items", word()}}})}};
        break;
    }
    schema["description"] = device_word.help;
    return schema;
}

/// A device as a string or as an object; several of them as an array, too.
Json schema_of(const DeviceSyntax& syntax) {
    Json object = {{"type", "object"}, {"additionalProperties", false}};
    for (const DeviceWord& device_word : syntax.words) {
        object["properties"][std::string(device_word.name)] = schema_of(device_word);
        if (device_word.kind == DeviceWord::Kind::kFirst) {
            object["required"] = Json::array({device_word.name});
        }
    }
    Json text = word();
    text["description"] = syntax.usage;
    Json one = Json::array({text, object});
    if (!syntax.several) {
        return {{"anyOf", one}};
    }
    Json several = one;
    several.push_back({{"type", "array"}, {"items", {{"anyOf", one}}}});
    return {{"anyOf", several}};
}

Json schema_of(const SchemaOption& option) {
    if (const DeviceSyntax* const syntax = find_device_syntax(option.name)) {
        return schema_of(*syntax);
    }
    switch (option.kind) {
    case SchemaOption::Kind::kFlag:
        return {{"type", "boolean"}};
    case SchemaOption::Kind::kNumber:
        return {{"type", "integer"}, {"minimum", 0}};
    case SchemaOption::Kind::kChoice:
        return {{"enum", option.choices}};
    case SchemaOption::Kind::kText:
        break;
    }
    Json schema = word();
    schema["examples"] = Json::array({option.form});
    return schema;
}

} // namespace

std::string config_schema(const std::vector<SchemaOption>& options) {
    Json schema = {{"$schema", "https://json-schema.org/draft/2020-12/schema"},
                   {"title", "The configuration file of `vmm run --config`"},
                   {"description", "Its members are the options of `vmm run`. Made by `vmm config-schema`."},
                   {"type", "object"},
                   {"additionalProperties", false}};
    for (const SchemaOption& option : options) {
        Json member = schema_of(option);
        member["description"] = option.help;
        schema["properties"][option.name] = std::move(member);
    }
    return schema.dump(4) + "\n";
}

} // namespace vmm
