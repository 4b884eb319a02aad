// Devices and the configuration file on the command line.

#include <gtest/gtest.h>

#include <string>
#include <variant>
#include <vector>

#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "vmm/cli.hpp"

namespace vmm {
namespace {

using testing::mentions;

Command parse(std::vector<const char*> words) {
    words.insert(words.begin(), {"vmm", "run"});
    return parse_command_line(static_cast<int>(words.size()), words.data());
}

Config config_of(const std::vector<const char*>& words) {
    const Command command = parse(words);
    if (const auto* const text = std::get_if<TextCommand>(&command)) {
        ADD_FAILURE() << text->text;
        return {};
    }
    return std::get<RunCommand>(command).config;
}

std::string refusal_of(const std::vector<const char*>& words) {
    const Command command = parse(words);
    const auto* const text = std::get_if<TextCommand>(&command);
    EXPECT_NE(text, nullptr);
    EXPECT_EQ(text != nullptr ? text->exit_code : 0, 2);
    return text != nullptr ? text->text : "";
}

TEST(CommandLineDevices, AreNoneUnlessAskedFor) {
    const Config config = config_of({});
    EXPECT_TRUE(config.disks.empty());
    EXPECT_TRUE(config.nets.empty());
    EXPECT_FALSE(config.rng);
}

TEST(CommandLineDevices, MayBeSeveralInTheirOrder) {
    const Config config = config_of({"--disk", "a.img", "kernel", "--disk=b.img,ro", "--net", "tap=t0", "--rng"});
    EXPECT_EQ(config.disks, (std::vector<DiskConfig>{{.path = "a.img"}, {.path = "b.img", .read_only = true}}));
    EXPECT_EQ(config.nets, (std::vector<NetConfig>{{.tap = "t0"}}));
    EXPECT_EQ(config.kernel_path, "kernel");
    EXPECT_TRUE(config.rng);
}

TEST(CommandLineDevices, ThatAreNotUnderstoodNameTheOptionAndTheWord) {
    const std::string refusal = refusal_of({"--disk", "a.img,readonly"});
    EXPECT_TRUE(mentions(refusal, "--disk")) << refusal;
    EXPECT_TRUE(mentions(refusal, "'readonly'")) << refusal;
    EXPECT_TRUE(mentions(refusal_of({"--net", "eth0"}), "--net"));
}

class CommandLineConfigFile : public ::testing::Test {
  protected:
    std::string file(const std::string& text) { return directory_.write("c.json", text); }

  private:
    testing::TemporaryDirectory directory_;
};

TEST_F(CommandLineConfigFile, GivesOptions) {
    const std::string path = file(
        R"({"kernel": "k", "memory": "1G", "vcpus": 3, "prefault": "all", "rng": true, "disk": ["a", {"path": "b"}]})");
    const Config config = config_of({"--config", path.c_str()});
    EXPECT_EQ(config.kernel_path, "k");
    EXPECT_EQ(config.memory_bytes, kGiB);
    EXPECT_EQ(config.vcpus, 3U);
    EXPECT_EQ(config.prefault.scope, prefault::Scope::kAll);
    EXPECT_EQ(config.pin, prefault::Pin::kMlock) << "what follows from an option follows from the file's, too";
    EXPECT_TRUE(config.rng);
    EXPECT_EQ(config.disks, (std::vector<DiskConfig>{{.path = "a"}, {.path = "b"}}));
}

TEST_F(CommandLineConfigFile, IsOverriddenByTheCommandLine) {
    const std::string path = file(R"({"kernel": "k", "memory": "1G", "disk": ["a", "b"], "numa": "interleave"})");
    const Config config = config_of({"-m", "2G", "--disk", "c", "other", "--numa-node", "0", "--config", path.c_str()});
    EXPECT_EQ(config.kernel_path, "other");
    EXPECT_EQ(config.memory_bytes, 2 * kGiB);
    EXPECT_EQ(config.disks, (std::vector<DiskConfig>{{.path = "c"}}));
    EXPECT_EQ(config.numa.kind, prefault::NumaPolicy::Kind::kNode);
}

TEST_F(CommandLineConfigFile, WithAnOptionThatIsNoneOrAValueThatIsWrongNamesFileAndOption) {
    const std::string unknown = file(R"({"memroy": "1G"})");
    const std::string refusal = refusal_of({"--config", unknown.c_str()});
    EXPECT_TRUE(mentions(refusal, unknown)) << refusal;
    EXPECT_TRUE(mentions(refusal, "'memroy'")) << refusal;
    for (const char* const text : {R"({"memory": "much"})", R"({"vcpus": "two"})", R"({"page-size": "3M"})",
                                   R"({"disk": "a,rw"})", R"({"rng": "perhaps"})", R"({"config": "d.json"})"}) {
        const std::string path = file(text);
        EXPECT_TRUE(mentions(refusal_of({"--config", path.c_str()}), path)) << text;
    }
}

TEST_F(CommandLineConfigFile, ThatIsNotThereIsAUsageError) {
    EXPECT_TRUE(mentions(refusal_of({"--config", "/nonexistent.json"}), "/nonexistent.json"));
}

} // namespace
} // namespace vmm
