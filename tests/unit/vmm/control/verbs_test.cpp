#include "vmm/control/verbs.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "vmm/control/device_arguments.hpp"
#include "vmm/control/openapi.hpp"

namespace vmm::control {
namespace {

using Json = nlohmann::ordered_json;
using testing::content_of;

/// The status of the answer to a refused request; 0 if it is understood.
unsigned refusal(const std::string& method, const std::string& path, const std::string& body = "",
                 const std::string& query = "") {
    const auto understood = understand({method, path, query, body});
    const auto* const answer = std::get_if<HttpAnswer>(&understood);
    if (answer == nullptr) {
        return 0;
    }
    const Json json = Json::parse(answer->body);
    EXPECT_FALSE(json.at("error").get<std::string>().empty());
    EXPECT_FALSE(json.at("advice").get<std::string>().empty()) << answer->body;
    return answer->status;
}

TEST(Verbs, HaveNamesOfTheirOwn) {
    std::set<std::string> names;
    std::set<std::string> places;
    for (const Verb& verb : verbs()) {
        EXPECT_TRUE(names.insert(verb.name).second) << verb.name;
        EXPECT_TRUE(places.insert(verb.method + verb.path).second) << verb.path;
        EXPECT_FALSE(verb.help.empty()) << verb.name;
    }
}

TEST(Verbs, UnderstandTheirOwnExamples) {
    for (const Verb& verb : verbs()) {
        HttpRequest request{verb.method, verb.path, "", example_body(verb).dump()};
        for (const Parameter& parameter : verb.parameters) {
            if (parameter.place == Parameter::Place::kPath) {
                request.path.replace(request.path.find('{'), parameter.name.size() + 2, parameter.example);
            } else if (parameter.place == Parameter::Place::kQuery) {
                request.query += (request.query.empty() ? "" : "&") + parameter.name + "=" + parameter.example;
            }
        }
        const auto understood = understand(request);
        ASSERT_TRUE(std::holds_alternative<Call>(understood)) << verb.name << std::get<HttpAnswer>(understood).body;
        EXPECT_EQ(std::get<Call>(understood).verb->name, verb.name);
    }
}

TEST(Verbs, TakePortsWithAnAddress) {
    for (const char* const parameter : {"tcp", "udp"}) {
        const auto body = [parameter](const char* ports) {
            return R"({"user": true, ")" + std::string(parameter) + R"(": ")" + ports + R"("})";
        };
        const auto understood = understand({"POST", "/add-net", "", body("192.0.2.1/8080:80,22")});
        ASSERT_TRUE(std::holds_alternative<Call>(understood)) << parameter;
        const NetConfig net = net_config_of(std::get<Call>(understood).arguments);
        ASSERT_EQ(net.forwards.size(), 2U);
        EXPECT_EQ(net.forwards[0].host_address, "192.0.2.1");
        EXPECT_EQ(net.forwards[1].udp, std::string(parameter) == "udp");
        EXPECT_EQ(refusal("POST", "/add-net", body("80:")), 400U);
    }
}

TEST(Verbs, AreGivenWhatTheRequestSays) {
    const auto understood = understand({"POST", "/stop", "", R"({"within": 5, "force": true})"});
    const auto& arguments = std::get<Call>(understood).arguments;
    EXPECT_EQ(arguments.number("within"), 5U);
    EXPECT_TRUE(arguments.flag("force"));
    EXPECT_EQ(arguments.word("method"), std::nullopt);
    EXPECT_EQ(std::get<Call>(understand({"GET", "/jobs/17", "", ""})).arguments.number("id"), 17U);
    EXPECT_TRUE(std::get<Call>(understand({"GET", "/events", "since=3&follow=true", ""})).arguments.flag("follow"));
}

TEST(Verbs, RefuseWhatIsTheCallersFault) {
    EXPECT_EQ(refusal("GET", "/nothing"), 404U);
    EXPECT_EQ(refusal("GET", "/jobs/1/2"), 404U);
    EXPECT_EQ(refusal("GET", "/jobs/x"), 400U);
    EXPECT_EQ(refusal("GET", "/jobs/0"), 400U);
    EXPECT_EQ(refusal("GET", "/jobs/99999999999999999999"), 400U);
    EXPECT_EQ(refusal("GET", "/pause"), 405U);
    EXPECT_EQ(refusal("BREW", "/status"), 405U);
    EXPECT_EQ(refusal("POST", "/stop", "{"), 400U);
    EXPECT_EQ(refusal("POST", "/stop", "[]"), 400U);
    EXPECT_EQ(refusal("POST", "/stop", "null"), 400U);
    EXPECT_EQ(refusal("POST", "/stop", R"({"within": -1})"), 400U);
    EXPECT_EQ(refusal("POST", "/stop", R"({"within": 3601})"), 400U);
    EXPECT_EQ(refusal("POST", "/stop", R"({"within": 1.5})"), 400U);
    EXPECT_EQ(refusal("POST", "/stop", R"({"within": "5"})"), 400U);
    EXPECT_EQ(refusal("POST", "/stop", R"({"force": null})"), 400U);
    EXPECT_EQ(refusal("POST", "/stop", R"({"no-such": 1})"), 400U);
    EXPECT_EQ(refusal("POST", "/stop", std::string(60'000, '[')), 400U);
    EXPECT_EQ(refusal("POST", "/balloon", "{}"), 400U);
    EXPECT_EQ(refusal("POST", "/prefault", R"({"method": "magic"})"), 400U);
    EXPECT_EQ(refusal("PUT", "/log-level", R"({"level": "\ud800"})"), 400U);
    EXPECT_EQ(refusal("GET", "/events", "", "since=x"), 400U);
    EXPECT_EQ(refusal("GET", "/events", "", "until=1"), 400U);
}

TEST(Verbs, SayWhichMethodsAPathHas) {
    const auto understood = understand({"DELETE", "/log-level", "", ""});
    EXPECT_EQ(std::get<HttpAnswer>(understood).allow, "GET, PUT");
}

TEST(OpenApi, InTheDocumentationIsThatOfTheVerbs) {
    EXPECT_EQ(content_of(std::string(VMM_SOURCE_DIR) + "/docs/openapi.json"), openapi_document())
        << "run `vmm api-schema > docs/openapi.json`";
}

TEST(OpenApi, HasEverySchemaThatItRefersTo) {
    const Json document = Json::parse(openapi_document());
    const std::string text = document.dump();
    const std::string prefix = "#/components/schemas/";
    std::size_t references = 0;
    for (std::size_t at = text.find(prefix); at != std::string::npos; at = text.find(prefix, at + 1), ++references) {
        const std::size_t begin = at + prefix.size();
        const std::string name = text.substr(begin, text.find('"', begin) - begin);
        EXPECT_TRUE(document["components"]["schemas"].contains(name)) << name;
    }
    EXPECT_GT(references, 20U);
}

} // namespace
} // namespace vmm::control
