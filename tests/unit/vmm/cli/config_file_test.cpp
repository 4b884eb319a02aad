// The JSON that --config accepts.

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "vmm/cli/config_file.hpp"

namespace vmm {
namespace {

using Entries = std::vector<ConfigFileEntry>;

/// The entries without their line numbers.
Entries parse(const std::string& text) {
    Entries entries = parse_config_file(text, "c.json");
    for (ConfigFileEntry& entry : entries) {
        EXPECT_EQ(entry.lines.size(), entry.values.size());
        entry.lines.clear();
    }
    return entries;
}

/// One entry, without its line numbers.
ConfigFileEntry entry(std::string option, std::vector<std::string> values) {
    return {std::move(option), std::move(values), {}};
}

std::string error_of(const std::string& text) {
    return testing::error_of([&] { static_cast<void>(parse(text)); });
}

TEST(ConfigFile, HasTheWordsOfTheCommandLine) {
    EXPECT_EQ(parse(R"({"kernel": "vmlinuz", "memory": "4G", "vcpus": 2, "rng": true})"),
              (Entries{entry("kernel", {"vmlinuz"}), entry("memory", {"4G"}), entry("vcpus", {"2"}),
                       entry("rng", {"true"})}));
}

TEST(ConfigFile, HasSeveralOfADevice) {
    EXPECT_EQ(parse(R"({"disk": ["a.img,ro", {"path": "b,c.img", "queues": 2, "direct": true, "ro": false}]})"),
              (Entries{entry("disk", {"a.img,ro", "b,,c.img,queues=2,direct"})}));
    EXPECT_EQ(parse(R"({"net": {"tap": "tap0"}})"), (Entries{entry("net", {"tap=tap0"})}));
    EXPECT_EQ(parse(R"({"net": {"user": true, "tcp": ["8080:80", 22], "udp": 53}})"),
              (Entries{entry("net", {"user,tcp=8080:80,tcp=22,udp=53"})}));
    EXPECT_EQ(parse(R"({"balloon": {"reporting": true, "size": "64M"}, "vsock": {"cid": 7, "path": "v"}})"),
              (Entries{entry("balloon", {"64M,reporting"}), entry("vsock", {"v,cid=7"})}));
    EXPECT_EQ(parse(R"({"disk": []})"), Entries{});
    EXPECT_EQ(
        parse(R"({"disk": [{"path": "a", "lock": false}, {"path": "b", "lock": true}, {"path": "c", "lock": "off"}]})"),
        (Entries{entry("disk", {"a,lock=off", "b,lock=on", "c,lock=off"})}));
}

TEST(ConfigFile, MayHaveComments) {
    EXPECT_EQ(parse("{ // how much\n \"memory\": \"1G\" }"), (Entries{entry("memory", {"1G"})}));
}

TEST(ConfigFile, KnowsTheLineOfEachValue) {
    const Entries entries =
        parse_config_file("{\n \"memory\":\n \"1G\",\n \"disk\": [\"a\",\n {\"path\": \"b\"}]\n}", "c");
    ASSERT_EQ(entries.size(), 2U);
    EXPECT_EQ(entries[0].lines, (std::vector<std::size_t>{2}));
    EXPECT_EQ(entries[1].lines, (std::vector<std::size_t>{4, 5}));
}

TEST(ConfigFile, NamesFileLineAndMemberOfWhatIsWrong) {
    EXPECT_EQ(
        error_of("{\n\n\"disk\": [\"a\",\n {\"path\": \"b\",\n \"queues\": 1.5}]}"),
        "cannot use the configuration in c.json, line 5: disk.queues: there has to be a string or a whole number");
    EXPECT_EQ(
        error_of("{\n\"memory\": {\"size\": 1}}"),
        "cannot use the configuration in c.json, line 2: memory: there has to be a string or a whole number: it is "
        "no device");
    EXPECT_EQ(error_of("{\"disk\":\n[{\"ro\": true}]}"),
              "cannot use the configuration in c.json, line 2: disk: there has to be a member 'path'");
    EXPECT_EQ(error_of("{\"disk\": {\"path\": \"a\",\n\"path\": \"b\"}}"),
              "cannot use the configuration in c.json, line 2: it says 'path' twice, first in line 1");
    EXPECT_NE(error_of("{\"a\": " + std::string(100, '[')).find("nested too deeply"), std::string::npos);
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
    EXPECT_EQ(read_config_file(directory.write("c.json", R"({"memory": "1G"})")), (Entries{{"memory", {"1G"}, {1}}}));
}

TEST(ConfigFile, WithANulInAStringIsRefused) {
    for (const char* const text :
         {R"({"report": "a\u0000b"})", R"({"disk": {"path": "a\u0000b"}})", R"({"a\u0000b": 1})",
          R"({"net": {"tcp": ["1\u00002"]}})", R"({"disk": {"id\u0000": "x"}})"}) {
        EXPECT_EQ(error_of(text),
                  "cannot use the configuration in c.json, line 1: there is a NUL character (\\u0000) in "
                  "a string: remove it")
            << text;
    }
}

TEST(ConfigFile, ThatHasANulAnywhereIsNoText) {
    // The parser would take it for the end of the text, and ignore the rest.
    using namespace std::string_literals;
    EXPECT_EQ(error_of("{}\n\0{"s),
              "cannot use the configuration in c.json, line 2: there is a NUL character: it is no "
              "text");
    EXPECT_TRUE(error_of("{\"memory\": \"1\0G\"}"s).find("NUL") != std::string::npos);
}

TEST(ConfigFile, OfAMebibyteOfDistinctNamesTakesTimeInProportion) {
    // If each name were searched among all names, this would not end within the test's limit.
    std::string text = "{";
    std::size_t count = 0;
    while (text.size() < (1 << 20) - 20) {
        text += (count == 0 ? "\"" : ",\"") + std::to_string(count) + "\":1";
        ++count;
    }
    EXPECT_EQ(parse(text + "}").size(), count);
    EXPECT_NE(error_of(text + ",\"0\":1}").find("it says '0' twice"), std::string::npos);
    std::string device = "{\"disk\": {\"path\": \"a\"";
    for (std::size_t i = 0; i < count / 2; ++i) {
        device += ",\"" + std::to_string(i) + "\":1";
    }
    EXPECT_EQ(parse(device + "}}").size(), 1U);
}

TEST(ConfigFile, ErrorQuotesNoMoreThanCanBeRead) {
    for (const std::string& text :
         {"{\"a\": \"" + std::string(500'000, 'x') + "\n", "{\"a\": " + std::string(500'000, '9') + "x",
          std::string(500'000, '/'), "{\"a\": tru" + std::string(500'000, 'e')}) {
        const std::string error = error_of(text);
        EXPECT_NE(error, "");
        EXPECT_LT(error.size(), 500U) << text.substr(0, 20);
    }
}

TEST(ConfigFile, ThatIsOddIsRefusedOrUnderstoodButNeverAnAccident) {
    EXPECT_EQ(parse("\xef\xbb\xbf{\"memory\": \"1G\"}"), (Entries{entry("memory", {"1G"})})); // a byte order mark
    EXPECT_EQ(parse("{\"vcpus\": -1}"), (Entries{entry("vcpus", {"-1"})}));                   // the option refuses it
    EXPECT_EQ(parse("{\"vcpus\": 18446744073709551615}"), (Entries{entry("vcpus", {"18446744073709551615"})}));
    for (const std::string& text :
         {std::string(), std::string(" "), std::string("{"), std::string("{}{}"), std::string("{} x"),
          std::string("{\"vcpus\": 1e3}"), std::string("{\"vcpus\": 1e400}"), std::string("{\"vcpus\": NaN}"),
          std::string("{\"vcpus\": 18446744073709551616}"), std::string("{\"vcpus\": Infinity}"),
          std::string("{\"kernel\": \"\xff\xfe\"}"), std::string("{\"kernel\": \"\\ud800\"}"),
          std::string("\xff\xfe{\x00}", 5), std::string("{\"a\": 1,}"), std::string("{'a': 1}"), std::string("/* {}"),
          std::string(900'000, '['), std::string(900'000, '{')}) {
        const std::string error = error_of(text);
        EXPECT_TRUE(error.starts_with("cannot use the configuration in c.json")) << text.substr(0, 40) << error;
    }
}

TEST(ConfigFile, ThatIsADirectorySaysSo) {
    const testing::TemporaryDirectory directory;
    const std::string error = testing::error_of([&] { return read_config_file(directory / "."); });
    EXPECT_NE(error.find("Is a directory"), std::string::npos) << error;
}

} // namespace
} // namespace vmm
