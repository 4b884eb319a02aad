// Checks files against the schema of the configuration file, and compares with the messages of the command itself.

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <ostream>
#include <string>
#include <variant>
#include <vector>

#include <nlohmann/json.hpp>

#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/json_schema.hpp"
#include "vmm/cli/command_line.hpp"
#include "vmm/cli/config_schema.hpp"

namespace vmm {
namespace {

using nlohmann::json;
using testing::mentions;

/// The message of `vmm run --config` for a file with this text; empty if it accepts the file.
std::string command_refusal(const std::string& text) {
    const testing::TemporaryDirectory directory;
    const std::string path = directory.write("c.json", text);
    const std::vector<const char*> words{"vmm", "run", "--config", path.c_str()};
    const Command command = parse_command_line(static_cast<int>(words.size()), words.data());
    if (const auto* const refused = std::get_if<TextCommand>(&command)) {
        return refused->text;
    }
    return {};
}

/// The same, but including the limits that the machine checks before anything is created.
std::string machine_refusal(const std::string& text) {
    const testing::TemporaryDirectory directory;
    const std::string path = directory.write("c.json", text);
    const std::vector<const char*> words{"vmm", "run", "--config", path.c_str()};
    const Command command = parse_command_line(static_cast<int>(words.size()), words.data());
    if (const auto* const run = std::get_if<RunCommand>(&command)) {
        return testing::error_of([&] { validate(run->config); });
    }
    return std::get<TextCommand>(command).text;
}

/// The schema's message against it.
std::string schema_refusal(const std::string& text) {
    static const testing::JsonSchema kSchema(json::parse(config_schema()));
    return kSchema.why_not(json::parse(text, nullptr, true, true));
}

class AcceptedConfigFile : public ::testing::TestWithParam<const char*> {};

TEST_P(AcceptedConfigFile, IsAcceptedByTheSchemaAndTheCommand) {
    EXPECT_EQ(schema_refusal(GetParam()), "");
    EXPECT_EQ(command_refusal(GetParam()), "");
}

INSTANTIATE_TEST_SUITE_P(
    Files, AcceptedConfigFile,
    ::testing::Values(
        R"({})", R"({"kernel": "vmlinuz", "initrd": "initrd.img", "cmdline": "root=/dev/vda ro"})",
        R"({"memory": "4G", "vcpus": 4, "cpu": "host,-x2apic", "nested": "off"})",
        R"({"memory": 67108864, "vcpus": 254, "cpu": "x86-64-v2,+aes", "nested": "on"})",
        R"({"memory": "65536KiB", "cmdline": ""} // a comment)",
        R"({"prefault": "all", "prefault-method": "touch", "prefault-when": "background", "prefault-workers": 512})",
        R"({"prefault": "0-1G,0x100000000-6G", "prefault-smm": true, "prefault-cpus": "0-3,8"})",
        R"({"prefault": "host", "prefault-method": "ioctl", "prefault-cpus": 0, "prefault-when": "before"})",
        R"({"vcpu-cpus": "0,1", "device-cpus": "2-3", "numa": "split", "page-size": "2M", "pin": "longterm", "reserve-hugepages": true})",
        R"({"numa-node": 0, "page-size": "thp", "pin": "none", "reserve-hugepages": false})",
        R"({"serial": "none", "console": "stdio", "report": "r.json", "log-file": "v.log"})",
        R"({"serial": "s.txt", "verbose": true, "watch": true, "quiet": false})",
        R"({"disk": "a.img,ro,io=uring,sector=4096,queues=16,lock=off,id="})",
        R"({"disk": ["a,,b.img", {"path": "b.img", "ro": true, "direct": false, "sector": 512, "io": "threads"}]})",
        R"({"disk": {"path": "a.img", "queues": 16, "id": "12345678901234567890", "lock": false, "moderation": false}})",
        R"({"net": ["tap=tap0,mac=52:54:00:12:34:56", {"user": true, "tcp": ["8080:80", 22], "udp": 53}]})",
        R"({"net": {"tap": "tap0", "mac": "52:54:00:aa:BB:cc"}, "rng": true})",
        R"({"vsock": {"path": "guest.vsock", "cid": 4294967294}, "balloon": {"size": "64M", "reporting": true}})",
        R"({"vsock": "v,cid=3", "balloon": 0})", R"({"hardware": "both", "dump-dtb": "t.dtb"})"));

struct RefusedFile {
    const char* text;
    const char* says; ///< a part of what the command, or the machine, says of it
};
void PrintTo(const RefusedFile& file, std::ostream* out) {
    *out << file.text;
}

class RefusedConfigFile : public ::testing::TestWithParam<RefusedFile> {};

TEST_P(RefusedConfigFile, IsRefusedByTheSchemaAndTheCommand) {
    EXPECT_NE(schema_refusal(GetParam().text), "");
    const std::string refusal = machine_refusal(GetParam().text);
    EXPECT_TRUE(mentions(refusal, GetParam().says)) << refusal;
}

INSTANTIATE_TEST_SUITE_P(
    Files, RefusedConfigFile,
    ::testing::Values(
        RefusedFile{R"([{"memory": "1G"}])", "one object"}, RefusedFile{R"({"memroy": "1G"})", "no option 'memroy'"},
        RefusedFile{R"({"config": "other.json"})", "no option 'config'"},
        RefusedFile{R"({"help": true})", "no option 'help'"}, RefusedFile{R"({"kernel": ""})", "--kernel: it is empty"},
        RefusedFile{R"({"memory": "much"})", "no size"}, RefusedFile{R"({"memory": 1.5})", "memory"},
        RefusedFile{R"({"memory": -1})", "no size"}, RefusedFile{R"({"vcpus": 255})", "1 to 254 are possible"},
        RefusedFile{R"({"vcpus": "two"})", "--vcpus"}, RefusedFile{R"({"cpu": "x86-64-v9"})", "no processor"},
        RefusedFile{R"({"nested": "maybe"})", "--nested"},
        RefusedFile{R"({"prefault": "some"})", "neither none, host or all"},
        RefusedFile{R"({"prefault": "all", "prefault-workers": 513})", "1 to 512 are possible"},
        RefusedFile{R"({"prefault-cpus": "3-"})", "no list of CPUs"},
        RefusedFile{R"({"page-size": "3M"})", "4K, thp, 2M, 1G"},
        RefusedFile{R"({"pin": "glue"})", "none, mlock, longterm"},
        RefusedFile{R"({"hardware": "dtb"})", "acpi, fdt, both"},
        RefusedFile{R"({"hardware": true})", "acpi, fdt, both"},
        RefusedFile{R"({"rng": "perhaps"})", "neither true nor false"},
        RefusedFile{R"({"disk": "a.img,rw"})", "'rw' is not known here"},
        RefusedFile{R"({"disk": {"ro": true}})", "a member 'path'"},
        RefusedFile{R"({"disk": {"path": "a.img", "format": "qcow2"}})", "not known here"},
        RefusedFile{R"({"disk": {"path": "a.img", "queues": 17}})", "1 to 16 are possible"},
        RefusedFile{R"({"disk": {"path": "a.img", "sector": 1024}})", "512, 4096"},
        RefusedFile{R"({"disk": {"path": "a.img", "io": "native"}})", "auto, uring, threads"},
        RefusedFile{R"({"disk": {"path": "a.img", "id": "123456789012345678901"}})", "20 characters"},
        RefusedFile{R"({"net": {"mac": "52:54:00:12:34:56"}})", "no tap"},
        RefusedFile{R"({"net": {"user": true, "tcp": "ssh"}})", "port"},
        RefusedFile{R"({"net": [{"tap": "tap0", "mac": "52:54"}]})", "MAC address"},
        RefusedFile{R"({"vsock": {"cid": 3}})", "a member 'path'"},
        RefusedFile{R"({"balloon": {"size": "all"}})", "no size"}));

/// Users are pointed to the file. If this fails: `vmm config-schema > docs/config.schema.json`.
TEST(ConfigSchema, InTheDocumentationIsThatOfTheOptions) {
    const std::vector<const char*> words{"vmm", "config-schema"};
    const Command command = parse_command_line(static_cast<int>(words.size()), words.data());
    const auto* const schema = std::get_if<TextCommand>(&command);
    ASSERT_NE(schema, nullptr);
    EXPECT_EQ(schema->exit_code, 0);
    std::ifstream file(VMM_SOURCE_DIR "/docs/config.schema.json");
    const std::string documented((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    EXPECT_EQ(schema->text, documented);
}

TEST(ConfigSchema, HasEveryMemberThatTheExampleOfTheDocumentationHas) {
    std::ifstream file(VMM_SOURCE_DIR "/docs/config.md");
    const std::string page((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    const std::string fence = "```json\n";
    const std::size_t begin = page.find(fence) + fence.size();
    const std::string example = page.substr(begin, page.find("```", begin) - begin);
    EXPECT_EQ(schema_refusal(example), "");
    EXPECT_EQ(command_refusal(example), "");
}

} // namespace
} // namespace vmm
