// Devices and the configuration file on the command line.

#include <gtest/gtest.h>

#include <string>
#include <variant>
#include <vector>

#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"
#include "vmm/cli/command_line.hpp"

namespace vmm {
namespace {

using testing::mentions;

Command parse_run(std::vector<const char*> words) {
    words.insert(words.begin(), {"vmm", "run"});
    return parse_command_line(static_cast<int>(words.size()), words.data());
}

Config config_of(const std::vector<const char*>& words) {
    const Command command = parse_run(words);
    if (const auto* const text = std::get_if<TextCommand>(&command)) {
        ADD_FAILURE() << text->text;
        return {};
    }
    return std::get<RunCommand>(command).config;
}

std::string refusal_of(const std::vector<const char*>& words) {
    const Command command = parse_run(words);
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

RunCommand command_of(const std::vector<const char*>& words) {
    const Command command = parse_run(words);
    if (const auto* const text = std::get_if<TextCommand>(&command)) {
        ADD_FAILURE() << text->text;
        return {};
    }
    return std::get<RunCommand>(command);
}

TEST(CommandLineHardware, IsToldOfByAcpiUnlessSaidOtherwise) {
    EXPECT_EQ(config_of({}).hardware, HardwareDescription::kAcpi);
    EXPECT_EQ(config_of({"--hardware=acpi"}).hardware, HardwareDescription::kAcpi);
    EXPECT_EQ(config_of({"--hardware", "fdt"}).hardware, HardwareDescription::kFdt);
    EXPECT_EQ(config_of({"--hardware=both"}).hardware, HardwareDescription::kBoth);
}

TEST(CommandLineHardware, ThatIsNoneNamesTheChoices) {
    for (const char* const word : {"--hardware=dt", "--hardware=acpi,fdt", "--hardware="}) {
        const std::string refusal = refusal_of({word});
        for (const char* const part : {"--hardware", "acpi", "fdt", "both"}) {
            EXPECT_TRUE(mentions(refusal, part)) << refusal;
        }
    }
}

TEST(CommandLineHardware, DumpedIsATreeUnlessThatWasRuledOut) {
    EXPECT_EQ(command_of({"--dump-dtb", "t.dtb"}).dump_dtb, "t.dtb");
    EXPECT_EQ(command_of({"--dump-dtb", "t.dtb"}).config.hardware, HardwareDescription::kFdt);
    EXPECT_EQ(command_of({"--dump-dtb=t.dtb", "--hardware=both"}).config.hardware, HardwareDescription::kBoth);
    EXPECT_TRUE(mentions(refusal_of({"--dump-dtb=t.dtb", "--hardware=acpi"}), "no device tree"));
    EXPECT_TRUE(mentions(refusal_of({"--dump-dtb="}), "--dump-dtb"));
    EXPECT_TRUE(mentions(refusal_of({"--dump-dtb=t.dtb", "--report=r.json"}), "exclude each other"));
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

TEST_F(CommandLineConfigFile, SaysWhatTellsOfTheHardware) {
    const std::string both = file(R"({"hardware": "both", "dump-dtb": "t.dtb"})");
    EXPECT_EQ(command_of({"--config", both.c_str()}).config.hardware, HardwareDescription::kBoth);
    EXPECT_EQ(command_of({"--config", both.c_str()}).dump_dtb, "t.dtb");
    EXPECT_EQ(command_of({"--config", both.c_str(), "--hardware=fdt"}).config.hardware, HardwareDescription::kFdt);
    const std::string wrong = file(R"({"hardware": "dtb"})");
    EXPECT_TRUE(mentions(refusal_of({"--config", wrong.c_str()}), wrong));
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

TEST_F(CommandLineConfigFile, WithOneDeviceOfSeveralThatIsWrongNamesItsLine) {
    const std::string path = file("{\n\"disk\": [\n\"a\",\n\"b,rw\",\n\"c\"]}");
    const std::string refusal = refusal_of({"--config", path.c_str()});
    EXPECT_TRUE(mentions(refusal, path + ", line 4: --disk: 'b,rw'") ||
                mentions(refusal, path + ", line 4: --disk: 'rw'"))
        << refusal;
    const std::string unknown = file("{\n\"memory\": \"1G\",\n\"disks\": []}");
    EXPECT_TRUE(config_of({"--config", unknown.c_str()}).disks.empty()) << "nothing is said of it";
    const std::string none = file("{\n\"memory\": \"1G\",\n\"disks\": \"a\"}");
    EXPECT_TRUE(mentions(refusal_of({"--config", none.c_str()}), none + ", line 3: there is no option 'disks'"));
}

TEST_F(CommandLineConfigFile, HasEveryDeviceAndSeveralOfThem) {
    const std::string path = file(R"({
        "disk": ["a", {"path": "b", "ro": true, "id": "x,y"}],
        "net": [{"tap": "t0"}, {"user": true, "tcp": ["8080:80", "2222:22"], "host-loopback": true}, "tap=t1"],
        "vsock": {"path": "v", "cid": 9},
        "balloon": {"size": "64M", "reporting": true},
        "console": "none",
        "rng": true
    })");
    const Config config = config_of({"--config", path.c_str()});
    EXPECT_EQ(config.disks, (std::vector<DiskConfig>{{.path = "a"}, {.path = "b", .read_only = true, .id = "x,y"}}));
    ASSERT_EQ(config.nets.size(), 3U);
    EXPECT_EQ(config.nets[0].tap, "t0");
    EXPECT_TRUE(config.nets[1].user);
    EXPECT_TRUE(config.nets[1].host_loopback);
    EXPECT_EQ(config.nets[1].forwards.size(), 2U);
    EXPECT_EQ(config.nets[2].tap, "t1");
    EXPECT_EQ(config.vsock, (VsockConfig{.path = "v", .cid = 9}));
    EXPECT_EQ(config.balloon, (BalloonConfig{64 * kMiB, true}));
    EXPECT_TRUE(config.rng);
}

TEST(CommandLineDevices, OfWhichThereCanBeOneAreRefusedTwice) {
    EXPECT_TRUE(mentions(refusal_of({"--vsock", "a", "--vsock", "b"}), "--vsock"));
    EXPECT_TRUE(mentions(refusal_of({"--balloon", "1M", "--balloon", "2M"}), "--balloon"));
}

TEST(CommandLineDevices, BalloonIsRefusedWithMemoryThatIsToStay) {
    EXPECT_EQ(config_of({"--balloon", "256M"}).balloon, (BalloonConfig{256 * kMiB, false}));
    for (const char* const option : {"--prefault=all", "--prefault=host", "--prefault=0-1M", "--pin=mlock",
                                     "--pin=longterm", "--page-size=2M", "--page-size=1G"}) {
        const std::string refusal = refusal_of({"--balloon", "64M", option});
        EXPECT_TRUE(mentions(refusal, "cannot give the guest a balloon with --")) << option << ": " << refusal;
    }
    EXPECT_TRUE(mentions(refusal_of({"--balloon", "5000"}), "multiple of 4 KiB"));
    EXPECT_TRUE(mentions(refusal_of({"--balloon", "512M", "-m", "512M"}), "needs some of it"));
}

TEST(CommandLineDevices, ConsoleCountsAsOne) {
    EXPECT_TRUE(config_of({"--console", "stdio"}).console.has_value());
    EXPECT_FALSE(config_of({"--console", "none"}).console.has_value());
}

} // namespace
} // namespace vmm
