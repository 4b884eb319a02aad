// The JSON that --config takes.

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "vmm/config_file.hpp"

namespace vmm {
namespace {

using Entries = std::vector<ConfigFileEntry>;

Entries parse(const std::string& text) {
    return parse_config_file(text, "c.json");
}

std::string error_of(const std::string& text) {
    return testing::error_of([&] { static_cast<void>(parse(text)); });
}

TEST(ConfigFile, HasTheWordsOfTheCommandLine) {
    EXPECT_EQ(parse(R"({"kernel": "vmlinuz", "memory": "4G", "vcpus": 2, "rng": true})"),
              (Entries{{"kernel", {"vmlinuz"}}, {"memory", {"4G"}}, {"rng", {"true"}}, {"vcpus", {"2"}}}));
}

TEST(ConfigFile, HasSeveralOfADevice) {
    EXPECT_EQ(parse(R"({"disk": ["a.img,ro", {"path": "b,c.img", "queues": 2, "direct": true, "ro": false}]})"),
              (Entries{{"disk", {"a.img,ro", "b,,c.img,direct,queues=2"}}}));
    EXPECT_EQ(parse(R"({"net": {"tap": "tap0"}})"), (Entries{{"net", {"tap=tap0"}}}));
    EXPECT_EQ(parse(R"({"disk": []})"), Entries{});
}

TEST(ConfigFile, MayHaveComments) {
    EXPECT_EQ(parse("{ // how much\n \"memory\": \"1G\" }"), (Entries{{"memory", {"1G"}}}));
}

TEST(ConfigFile, ThatIsNoJsonNamesTheFileAndTheLine) {
    const std::string error = error_of("{\n\"memory\": \n");
    EXPECT_TRUE(error.starts_with("cannot use the configuration in c.json: it is not JSON: at line 3")) << error;
    EXPECT_EQ(error.find("json.exception"), std::string::npos) << error;
}

TEST(ConfigFile, ThatIsNoObjectIsRefused) {
    for (const char* const text : {"[]", "1", "\"memory\"", "null"}) {
        EXPECT_NE(error_of(text).find("it has to be one object"), std::string::npos) << text;
    }
}

TEST(ConfigFile, WithAValueThatIsNoWordNamesTheMember) {
    for (const char* const text :
         {R"({"memory": 1.5})", R"({"memory": null})", R"({"memory": [[]]})", R"({"memory": {"path": []}})"}) {
        EXPECT_NE(error_of(text).find("memory"), std::string::npos) << text;
        EXPECT_NE(error_of(text).find("a string or a whole number"), std::string::npos) << text;
    }
}

TEST(ConfigFile, ThatSaysAThingTwiceIsRefused) {
    EXPECT_NE(error_of(R"({"memory": "1G", "memory": "2G"})").find("it says 'memory' twice"), std::string::npos);
}

TEST(ConfigFile, ThatCannotBeReadOrIsNoneNamesIt) {
    EXPECT_NE(testing::error_of([] {
                  static_cast<void>(read_config_file("/nonexistent/c.json"));
              }).find("/nonexistent/c.json"),
              std::string::npos);
    EXPECT_NE(testing::error_of([] { static_cast<void>(read_config_file("/dev/zero")); }).find("larger than 1 MiB"),
              std::string::npos);
    const testing::TemporaryDirectory directory;
    EXPECT_EQ(read_config_file(directory.write("c.json", R"({"memory": "1G"})")), (Entries{{"memory", {"1G"}}}));
}

} // namespace
} // namespace vmm
