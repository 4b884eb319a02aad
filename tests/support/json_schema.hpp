// Checks JSON by a JSON schema. It knows the keywords that docs/config.schema.json uses. Any other keyword is an error,
// so that a schema with a new keyword is not taken for a schema that allows everything.
#pragma once

#include <algorithm>
#include <cstddef>
#include <regex>
#include <stdexcept>
#include <string>
#include <utility>

#include <nlohmann/json.hpp>

namespace vmm::testing {

/// A schema of draft 2020-12 (https://json-schema.org/draft/2020-12).
class JsonSchema {
  public:
    explicit JsonSchema(nlohmann::json root) : root_(std::move(root)) {}

    /// Returns what is wrong with `value`, and where; empty if the schema allows it. Throws std::runtime_error if the
    /// schema uses an unknown keyword.
    [[nodiscard]] std::string why_not(const nlohmann::json& value) const { return why_not(root_, value, "the file"); }

  private:
    using Json = nlohmann::json;

    [[nodiscard]] std::string why_not(const Json& schema, const Json& value, const std::string& place) const {
        for (const auto& [keyword, rule] : schema.items()) {
            if (const std::string why = why_not(schema, keyword, rule, value, place); !why.empty()) {
                return why;
            }
        }
        return {};
    }

    [[nodiscard]] std::string why_not(const Json& schema, const std::string& keyword, const Json& rule,
                                      const Json& value, const std::string& place) const {
        if (keyword == "$schema" || keyword == "title" || keyword == "description" || keyword == "examples" ||
            keyword == "$defs") {
            return {}; // for people; $defs is for $ref
        }
        if (keyword == "$ref") {
            const std::string target = rule.get<std::string>(); // "#/$defs/disk"
            return why_not(root_.at(Json::json_pointer(target.substr(1))), value, place);
        }
        if (keyword == "type") {
            return has_type(rule, value) ? "" : place + " is not of type " + rule.dump();
        }
        if (keyword == "enum") {
            return std::ranges::find(rule, value) != rule.end() ? "" : place + " is none of " + rule.dump();
        }
        if (keyword == "anyOf") {
            const bool any =
                std::ranges::any_of(rule, [&](const Json& one) { return why_not(one, value, place).empty(); });
            return any ? "" : place + " is nothing of what it may be";
        }
        if (keyword == "minimum" || keyword == "maximum") {
            const bool good = !value.is_number() || (keyword == "minimum" ? value >= rule : value <= rule);
            return good ? "" : place + " is beyond " + rule.dump();
        }
        if (keyword == "minLength" || keyword == "maxLength" || keyword == "pattern") {
            return value.is_string() ? why_not_text(keyword, rule, value.get<std::string>(), place) : "";
        }
        if (keyword == "properties" || keyword == "additionalProperties" || keyword == "required") {
            return value.is_object() ? why_not_object(schema, keyword, rule, value, place) : "";
        }
        if (keyword == "items") {
            return value.is_array() ? why_not_items(rule, value, place) : "";
        }
        throw std::runtime_error("the schema has a keyword that tests/support/json_schema.hpp does not know: " +
                                 keyword);
    }

    /// `rule` is the name of a type, or a list of names.
    [[nodiscard]] static bool has_type(const Json& rule, const Json& value) {
        if (rule.is_array()) {
            return std::ranges::any_of(rule, [&](const Json& one) { return has_type(one, value); });
        }
        const std::string type = rule.get<std::string>();
        return (type == "string" && value.is_string()) || (type == "integer" && value.is_number_integer()) ||
               (type == "boolean" && value.is_boolean()) || (type == "object" && value.is_object()) ||
               (type == "array" && value.is_array());
    }

    [[nodiscard]] static std::string why_not_text(const std::string& keyword, const Json& rule, const std::string& text,
                                                  const std::string& place) {
        bool good = false;
        if (keyword == "pattern") {
            good = std::regex_search(text, std::regex(rule.get<std::string>()));
        } else {
            const auto length = static_cast<std::size_t>(
                std::ranges::count_if(text, [](char c) { return (static_cast<unsigned char>(c) & 0xc0U) != 0x80; }));
            good = keyword == "minLength" ? length >= rule.get<std::size_t>() : length <= rule.get<std::size_t>();
        }
        return good ? "" : place + " does not keep to " + keyword + " " + rule.dump();
    }

    [[nodiscard]] std::string why_not_object(const Json& schema, const std::string& keyword, const Json& rule,
                                             const Json& value, const std::string& place) const {
        if (keyword == "required") {
            for (const Json& name : rule) {
                if (!value.contains(name.get<std::string>())) {
                    return place + " has no member " + name.dump();
                }
            }
            return {};
        }
        for (const auto& [name, member] : value.items()) {
            const bool is_known = schema.contains("properties") && schema.at("properties").contains(name);
            if (keyword == "additionalProperties" && !is_known && rule == false) {
                return place + " has a member '" + name + "'";
            }
            if (keyword == "properties" && is_known) {
                if (const std::string why = why_not(rule.at(name), member, name); !why.empty()) {
                    return why;
                }
            }
        }
        return {};
    }

    [[nodiscard]] std::string why_not_items(const Json& rule, const Json& value, const std::string& place) const {
        for (const Json& item : value) {
            if (const std::string why = why_not(rule, item, "an item of " + place); !why.empty()) {
                return why;
            }
        }
        return {};
    }

    Json root_;
};

} // namespace vmm::testing
