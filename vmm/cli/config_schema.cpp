#include "vmm/cli/config_schema.hpp"

#include <nlohmann/json.hpp>

#include "vmm/cli/device_options.hpp"
#include "vmm/cli/options.hpp"

namespace vmm {

namespace {

using Json = nlohmann::ordered_json;

Json schema_of(const Limits& limits) {
    return {{"type", "integer"}, {"minimum", limits.least}, {"maximum", limits.most}};
}

/// The schema of a text that may be between commas or alone.
Json schema_of_text(const DeviceWord& word) {
    if (!word.choices.empty()) {
        return {{"enum", word.choices}};
    }
    Json schema = {{"type", Json::array({"string", "integer"})}};
    if (word.kind == DeviceWord::Kind::kFirst) {
        schema["minLength"] = 1;
    }
    if (word.most_bytes != 0) {
        schema["maxLength"] = word.most_bytes;
    }
    if (!word.pattern.empty()) {
        schema["pattern"] = "^" + word.pattern + "$";
        schema["minimum"] = 0;
    }
    return schema;
}

Json schema_of_number(const DeviceWord& word) {
    if (word.choices.empty()) {
        return schema_of(word.limits);
    }
    Json numbers = Json::array();
    for (const std::string& choice : word.choices) {
        numbers.push_back(std::stoul(choice));
    }
    return {{"enum", numbers}};
}

Json schema_of(const DeviceWord& word) {
    Json schema;
    switch (word.kind) {
    case DeviceWord::Kind::kFirst:
    case DeviceWord::Kind::kText:
        schema = schema_of_text(word);
        break;
    case DeviceWord::Kind::kFlag:
        schema = {{"type", "boolean"}};
        break;
    case DeviceWord::Kind::kSwitch:
        schema = {{"enum", Json::array({true, false, "on", "off"})}};
        break;
    case DeviceWord::Kind::kNumber:
        schema = schema_of_number(word);
        break;
    case DeviceWord::Kind::kTexts:
        schema = {{"anyOf", Json::array({schema_of_text(word), {{"type", "array"}, {"items", schema_of_text(word)}}})}};
        break;
    }
    schema["description"] = word.help;
    return schema;
}

/// The schema of one device: a text as on the command line, or an object with a member for each word.
Json schema_of(const DeviceSyntax& syntax) {
    Json object = {{"type", "object"}, {"additionalProperties", false}};
    Json kinds = Json::array();
    for (const DeviceWord& word : syntax.words) {
        object["properties"][word.name] = schema_of(word);
        if (word.kind == DeviceWord::Kind::kFirst) {
            object["required"] = Json::array({word.name});
        }
        if (word.is_kind) {
            kinds.push_back({{"required", Json::array({word.name})}});
        }
    }
    if (!kinds.empty()) {
        object["anyOf"] = kinds;
    }
    Json text = {{"type", "string"}, {"pattern", device_pattern(syntax)}, {"description", syntax.usage}};
    if (syntax.words.front().kind == DeviceWord::Kind::kFirst) { // a path or a size; a size may be a number
        text["type"] = Json::array({"string", "integer"});
        text["minimum"] = 0;
    }
    return {{"anyOf", Json::array({text, object})}};
}

Json schema_of_device_option(const DeviceSyntax& syntax) {
    Json one = {{"$ref", "#/$defs/" + syntax.option}};
    if (!syntax.is_repeated) {
        return one;
    }
    return {{"anyOf", Json::array({one, {{"type", "array"}, {"items", one}}})}};
}

Json schema_of_text(const OptionValue& value) {
    Json schema;
    if (value.may_be_number) {
        schema["type"] = Json::array({"string", "integer"});
    } else {
        schema["type"] = "string";
    }
    if (!value.pattern.empty()) {
        schema["pattern"] = value.pattern;
    } else if (!value.may_be_empty) {
        schema["minLength"] = 1;
    }
    if (!value.pattern.empty() && value.may_be_number) {
        schema["minimum"] = 0;
    }
    schema["examples"] = value.choices.empty() ? Json::array({value.form}) : Json(value.choices);
    return schema;
}

Json schema_of(const Option& option) {
    switch (option.value.kind) {
    case OptionValue::Kind::kNone:
        return {{"type", "boolean"}};
    case OptionValue::Kind::kNumber:
        return schema_of(option.value.limits);
    case OptionValue::Kind::kChoice:
        return {{"enum", option.value.choices}};
    case OptionValue::Kind::kDevice:
        return schema_of_device_option(*find_device_syntax(option.long_name()));
    case OptionValue::Kind::kText:
        return schema_of_text(option.value);
    }
    return {};
}

} // namespace

std::string config_schema() {
    Json schema = {{"$schema", "https://json-schema.org/draft/2020-12/schema"},
                   {"title", "The configuration file of `vmm run --config`"},
                   {"description", "Its members are the options of `vmm run`. Made by `vmm config-schema`."},
                   {"type", "object"},
                   {"additionalProperties", false}};
    for (const Option& option : options()) {
        if (option.is_allowed(Place::kFile)) {
            Json member = schema_of(option);
            member["description"] = option.help;
            schema["properties"][option.long_name()] = std::move(member);
        }
    }
    for (const DeviceSyntax& syntax : device_syntaxes()) {
        schema["$defs"][syntax.option] = schema_of(syntax);
    }
    return schema.dump(4) + "\n";
}

} // namespace vmm
