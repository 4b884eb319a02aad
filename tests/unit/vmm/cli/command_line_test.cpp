#include "vmm/cli/command_line.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "prefault/host/cpu_list.hpp"
#include "prefault/host/numa.hpp"
#include "support/host_errors.hpp"
#include "support/host_temporary_directory.hpp"

namespace vmm {
namespace {

using prefault::CpuList;
using prefault::Method;
using prefault::NumaPolicy;
using prefault::Pin;
using prefault::Scope;
using testing::mentions;
using Words = std::vector<const char*>;

Command parse(Words words) {
    words.insert(words.begin(), "vmm");
    return parse_command_line(static_cast<int>(words.size()), words.data());
}

/// `vmm run` with these words, which must be understood.
RunCommand run(Words words = {}) {
    words.insert(words.begin(), "run");
    const Command command = parse(words);
    if (const auto* const text = std::get_if<TextCommand>(&command)) {
        ADD_FAILURE() << text->text;
    }
    const auto* const understood = std::get_if<RunCommand>(&command);
    return understood != nullptr ? *understood : RunCommand{};
}

/// The text that answers `words`, if there is one.
std::optional<TextCommand> text_for(const Words& words) {
    const Command command = parse(words);
    const auto* const text = std::get_if<TextCommand>(&command);
    return text != nullptr ? std::optional(*text) : std::nullopt;
}

/// The message for words that are not understood.
std::string usage_error(const Words& words) {
    const auto text = text_for(words);
    if (!text) {
        return "understood";
    }
    EXPECT_EQ(text->exit_code, 2) << text->text;
    EXPECT_TRUE(text->text.starts_with("vmm: error: ")) << text->text;
    return text->text;
}

TEST(CommandLine, TransportIsPciUnlessMmioIsAskedFor) {
    EXPECT_EQ(run({"k"}).config.transport, VirtioTransport::kPci);
    for (const char* const word : {"--transport=mmio", "--transport=MMIO"}) {
        EXPECT_EQ(run({word, "k"}).config.transport, VirtioTransport::kMmio);
    }
    for (const char* const word : {"--transport=pci", "--transport=PCI"}) {
        EXPECT_EQ(run({word, "k"}).config.transport, VirtioTransport::kPci);
    }
    for (const char* const wrong : {"--transport=pcie", "--transport=isa"}) {
        const std::string error = usage_error({"run", wrong, "k"});
        EXPECT_TRUE(mentions(error, "--transport") && mentions(error, "mmio") && mentions(error, "pci")) << error;
    }
}

TEST(CommandLine, NamesTheWordThatIsNoCommand) {
    for (const char* const word : {"walk", "rum", "--prefault=all"}) {
        const std::string error = usage_error({word});
        EXPECT_TRUE(mentions(error, "'" + std::string(word) +
                                        "' is no command: it is run or ctl or snapshot or pool or doctor"))
            << error;
    }
}

TEST(CommandLine, TakesWhatAPoolIsMadeFrom) {
    const char* const words[] = {"vmm",         "pool", "--socket", "/run/p", "--size",      "8G", "--piece",   "2G",
                                 "--page-size", "1G",   "--numa",   "split",  "--bandwidth", "3G", "--workers", "2"};
    const Command command = parse_command_line(std::size(words), words);
    const auto* const pool = std::get_if<PoolCommand>(&command);
    ASSERT_NE(pool, nullptr);
    EXPECT_EQ(pool->config.path, "/run/p");
    EXPECT_EQ(pool->config.size_bytes, 8 * kGiB);
    EXPECT_EQ(pool->config.piece_bytes, 2 * kGiB);
    EXPECT_EQ(pool->config.page_size, PageSize::k1G);
    EXPECT_TRUE(pool->config.split_over_nodes);
    EXPECT_EQ(pool->config.bytes_per_second, 3 * kGiB);
    EXPECT_EQ(pool->config.workers, 2U);
}

TEST(CommandLine, TakesWhatIsDoneWithASnapshot) {
    const char* const words[] = {"vmm", "snapshot", "verify", "/snapshots/a", "--workers", "3", "--json"};
    const Command command = parse_command_line(std::size(words), words);
    const auto* const snapshot = std::get_if<SnapshotCommand>(&command);
    ASSERT_NE(snapshot, nullptr);
    EXPECT_EQ(snapshot->action, SnapshotCommand::Action::kVerify);
    EXPECT_EQ(snapshot->directory, "/snapshots/a");
    EXPECT_EQ(snapshot->workers, 3U);
    EXPECT_TRUE(snapshot->json);
}

TEST(CommandLine, RefusesWhatIsNotDoneWithASnapshot) {
    EXPECT_TRUE(mentions(usage_error({"snapshot", "mend", "/snapshots/a"}), "ACTION: 'mend'"));
    EXPECT_TRUE(mentions(usage_error({"snapshot", "info"}), "DIR is required"));
}

// What broke: "" was taken for 0: no vCPUs, no workers, and node 0.
TEST(CommandLine, RefusesAnEmptyNumber) {
    for (const char* const option : {"-c", "--prefault-workers", "--numa-node"}) {
        EXPECT_TRUE(mentions(usage_error({"run", option, ""}), "is empty")) << option;
    }
}

TEST(CommandLine, RunAloneHasTheDefaults) {
    const RunCommand command = run();
    EXPECT_EQ(command.config.kernel_path, "");
    EXPECT_EQ(command.config.initrd_path, "");
    EXPECT_EQ(command.config.command_line, "");
    EXPECT_EQ(command.config.memory_bytes, 512 * kMiB);
    EXPECT_EQ(command.config.page_size, PageSize::kThp);
    EXPECT_EQ(command.config.vcpus, 1U);
    EXPECT_EQ(command.config.prefault.scope, Scope::kNone);
    EXPECT_EQ(command.config.pin, Pin::kNone);
    EXPECT_EQ(command.config.prefault.ranges, std::vector<GuestRange>{});
    EXPECT_EQ(command.config.prefault.method, Method::kAuto);
    EXPECT_EQ(command.config.prefault.workers, prefault::usable_cpu_list().size());
    EXPECT_EQ(command.config.prefault.cpus, CpuList{});
    EXPECT_FALSE(command.config.prefault.smm);
    EXPECT_EQ(command.config.prefault_when, PrefaultWhen::kBefore);
    EXPECT_EQ(command.config.vcpu_cpus, CpuList{});
    EXPECT_EQ(command.config.numa, NumaPolicy{});
    EXPECT_FALSE(command.config.reserve_huge_pages);
    EXPECT_FALSE(command.watch);
    EXPECT_EQ(command.serial, "stdio");
    EXPECT_EQ(command.report, "");
    EXPECT_EQ(command.log_file, "");
    EXPECT_EQ(command.log_level, LogLevel::kWarning);
    EXPECT_TRUE(command.summary);
}

TEST(CommandLine, TakesEveryOption) {
    const RunCommand command = run({"bzImage",    "--memory",    "1G",
                                    "--vcpus",    "4",           "--initrd",
                                    "initrd.img", "--cmdline",   "root=/dev/ram0 quiet",
                                    "--prefault", "all",         "--prefault-workers",
                                    "7",          "--page-size", "2M",
                                    "--pin",      "none",        "--serial",
                                    "log.txt",    "--report",    "report.json",
                                    "--log-file", "vmm.log",     "--verbose"});
    EXPECT_EQ(command.config.kernel_path, "bzImage");
    EXPECT_EQ(command.config.memory_bytes, kGiB);
    EXPECT_EQ(command.config.vcpus, 4U);
    EXPECT_EQ(command.config.initrd_path, "initrd.img");
    EXPECT_EQ(command.config.command_line, "root=/dev/ram0 quiet");
    EXPECT_EQ(command.config.prefault.scope, Scope::kAll);
    EXPECT_EQ(command.config.prefault.workers, 7U);
    EXPECT_EQ(command.config.page_size, PageSize::k2M);
    EXPECT_EQ(command.config.pin, Pin::kNone);
    EXPECT_EQ(command.serial, "log.txt");
    EXPECT_EQ(command.report, "report.json");
    EXPECT_EQ(command.log_file, "vmm.log");
    EXPECT_EQ(command.log_level, LogLevel::kInfo);
}

TEST(CommandLine, TakesEveryOptionOfThePrefault) {
    const RunCommand command = run({"--prefault", "all", "--prefault-when", "background", "--prefault-method", "touch",
                                    "--prefault-cpus", "0-1,3", "--prefault-smm", "--vcpu-cpus", "2,0", "--device-cpus",
                                    "1,3", "--numa-node", "1", "--pin", "longterm", "--reserve-hugepages", "--watch"});
    EXPECT_EQ(command.config.prefault.scope, Scope::kAll);
    EXPECT_EQ(command.config.prefault_when, PrefaultWhen::kBackground);
    EXPECT_EQ(command.config.prefault.method, Method::kTouch);
    EXPECT_EQ(command.config.prefault.cpus, (CpuList{0, 1, 3}));
    EXPECT_TRUE(command.config.prefault.smm);
    EXPECT_EQ(command.config.vcpu_cpus, (CpuList{0, 2}));
    EXPECT_EQ(command.config.device_cpus, (CpuList{1, 3}));
    EXPECT_EQ(command.config.numa, (NumaPolicy{NumaPolicy::Kind::kNode, 1}));
    EXPECT_EQ(command.config.pin, Pin::kLongterm);
    EXPECT_TRUE(command.config.reserve_huge_pages);
    EXPECT_TRUE(command.watch);
}

TEST(CommandLine, TakesTheKeeper) {
    EXPECT_FALSE(run({"--prefault=all"}).config.prefault_keep);
    const RunCommand often = run({"--prefault=all", "--prefault-keep", "--keep-every", "20"});
    EXPECT_TRUE(often.config.prefault_keep);
    EXPECT_EQ(often.config.keep_every_ms, 20U);
    EXPECT_EQ(run({"--prefault=all", "--prefault-keep"}).config.keep_every_ms, 250U);
    EXPECT_TRUE(mentions(usage_error({"run", "--prefault=all", "--keep-every=20"}), "--prefault-keep"));
    EXPECT_NE(usage_error({"run", "--prefault=all", "--prefault-keep", "--keep-every=often"}), "");
}

TEST(CommandLine, TakesTheProcessorOfTheGuest) {
    EXPECT_EQ(run().config.cpu, "host");
    EXPECT_FALSE(run().config.nested);
    const RunCommand command = run({"--cpu", "x86-64-v2,+aes,-x2apic", "--nested", "on"});
    EXPECT_EQ(command.config.cpu, "x86-64-v2,+aes,-x2apic");
    EXPECT_TRUE(command.config.nested);
    EXPECT_FALSE(run({"--nested=off"}).config.nested);
    EXPECT_EQ(run({"--cpu=host,+vmx", "--nested=on"}).config.cpu, "host,+vmx");
}

TEST(CommandLine, RefusesAProcessorThatCannotBe) {
    const std::string unknown = usage_error({"run", "--cpu", "host,-avx51f"});
    EXPECT_TRUE(mentions(unknown, "--cpu")) << unknown;
    EXPECT_TRUE(mentions(unknown, "did you mean avx512f")) << unknown;
    EXPECT_TRUE(mentions(usage_error({"run", "--cpu", "host,+svm"}), "--nested on"));
    EXPECT_TRUE(mentions(usage_error({"run", "--cpu", "host,-lm"}), "no guest can do without lm"));
    EXPECT_TRUE(mentions(usage_error({"run", "--cpu", ""}), "--cpu"));
    EXPECT_NE(usage_error({"run", "--nested", "maybe"}), "");
}

TEST(CommandLine, TakesRangesOfGuestMemory) {
    const RunCommand command = run({"--prefault=0-1G,4G-6G"});
    EXPECT_EQ(command.config.prefault.scope, Scope::kAll);
    EXPECT_EQ(command.config.prefault.ranges,
              (std::vector{GuestRange{GuestAddress{0}, kGiB}, GuestRange{GuestAddress{4 * kGiB}, 2 * kGiB}}));
    EXPECT_EQ(command.config.pin, Pin::kMlock);
}

TEST(CommandLine, RefusesWhatIsNeitherAScopeNorRanges) {
    for (const char* const value : {"--prefault=1G-0", "--prefault=1G-1G", "--prefault=1G", "--prefault=0-1G,",
                                    "--prefault=all,0-1G", "--prefault=0..1G"}) {
        const std::string error = usage_error({"run", value});
        EXPECT_TRUE(mentions(error, "--prefault: ")) << value << ": " << error;
        EXPECT_TRUE(mentions(error, "none, host or all")) << value << ": " << error;
    }
}

TEST(CommandLine, RefusesAnEmptyScope) {
    EXPECT_TRUE(mentions(usage_error({"run", "--prefault="}), "--prefault: "));
    EXPECT_TRUE(mentions(usage_error({"run", "--prefault", ""}), "--prefault: "));
}

TEST(CommandLine, TakesTheMethodsByName) {
    EXPECT_EQ(run({"--prefault-method=auto"}).config.prefault.method, Method::kAuto);
    EXPECT_EQ(run({"--prefault-method=ioctl"}).config.prefault.method, Method::kIoctl);
    EXPECT_EQ(run({"--prefault-method=ioctl+touch"}).config.prefault.method, Method::kIoctlThenTouch);
    EXPECT_EQ(run({"--prefault-method=TOUCH"}).config.prefault.method, Method::kTouch);
}

TEST(CommandLine, TakesThePlacementByName) {
    EXPECT_EQ(run({"--numa=interleave"}).config.numa, NumaPolicy{NumaPolicy::Kind::kInterleave});
    EXPECT_EQ(run({"--numa=Split"}).config.numa, NumaPolicy{NumaPolicy::Kind::kSplit});
    EXPECT_EQ(run({"--numa-node=0"}).config.numa, (NumaPolicy{NumaPolicy::Kind::kNode, 0}));
}

TEST(CommandLine, PlacesMemoryInOneWayOnly) {
    const std::string error = usage_error({"run", "--numa=split", "--numa-node=0"});
    EXPECT_TRUE(mentions(error, "--numa")) << error;
    EXPECT_TRUE(mentions(error, "--numa-node")) << error;
}

TEST(CommandLine, TakesNoNodeForAPlacement) {
    EXPECT_TRUE(mentions(usage_error({"run", "--numa=0"}), "--numa"));
    EXPECT_TRUE(mentions(usage_error({"run", "--numa=default"}), "--numa"));
}

TEST(CommandLine, HasAWorkerForEachCpuTheyMayUse) {
    EXPECT_EQ(run({"--prefault-cpus=0-6"}).config.prefault.workers, 7U);
    EXPECT_EQ(run({"--prefault-cpus=3,3,3"}).config.prefault.workers, 1U);
    EXPECT_EQ(run({"--prefault-cpus=0-6", "--prefault-workers=2"}).config.prefault.workers, 2U);
    EXPECT_EQ(run({"--prefault-cpus=0-8191"}).config.prefault.workers, Config::kMaxPrefaultWorkers);
}

TEST(CommandLine, LeavesItToTheMachineToRefuseNoWorkers) {
    EXPECT_EQ(run({"--prefault-workers=0"}).config.prefault.workers, 0U);
}

TEST(CommandLine, RefusesListsOfCpusThatAreNone) {
    for (const std::string option : {"--prefault-cpus", "--vcpu-cpus", "--device-cpus"}) {
        for (const char* const list : {"9-1", "", "x", "0,", "-1", "0 1", "8192"}) {
            const std::string words = option + "=" + list;
            const std::string error = usage_error({"run", words.c_str()});
            EXPECT_TRUE(mentions(error, option)) << words << ": " << error;
        }
    }
}

TEST(CommandLine, TakesValuesAfterAnEqualsSign) {
    const RunCommand command = run({"--prefault=host", "--memory=64M", "--page-size=4K"});
    EXPECT_EQ(command.config.prefault.scope, Scope::kHost);
    EXPECT_EQ(command.config.memory_bytes, 64 * kMiB);
    EXPECT_EQ(command.config.page_size, PageSize::k4K);
}

TEST(CommandLine, TakesShortOptions) {
    const RunCommand command = run({"-m", "1G", "-c", "2", "-q"});
    EXPECT_EQ(command.config.memory_bytes, kGiB);
    EXPECT_EQ(command.config.vcpus, 2U);
    EXPECT_EQ(command.log_level, LogLevel::kError);
    EXPECT_FALSE(command.summary);
}

TEST(CommandLine, TakesACommandLineThatBeginsWithADash) {
    EXPECT_EQ(run({"--cmdline=--init=/bin/sh"}).config.command_line, "--init=/bin/sh");
}

TEST(CommandLine, CountsHowOftenVerboseIsSaid) {
    EXPECT_EQ(run({"-v"}).log_level, LogLevel::kInfo);
    EXPECT_EQ(run({"-vv"}).log_level, LogLevel::kDebug);
    EXPECT_EQ(run({"-v", "--verbose"}).log_level, LogLevel::kDebug);
}

struct Size {
    const char* text;
    std::uint64_t bytes;
};
void PrintTo(const Size& size, std::ostream* out) {
    *out << size.text;
}

class CommandLineSize : public ::testing::TestWithParam<Size> {};

TEST_P(CommandLineSize, IsUnderstood) {
    EXPECT_EQ(run({"-m", GetParam().text}).config.memory_bytes, GetParam().bytes);
}

INSTANTIATE_TEST_SUITE_P(Sizes, CommandLineSize,
                         ::testing::Values(Size{"512M", 512 * kMiB}, Size{"3584M", 3584 * kMiB}, Size{"4g", 4 * kGiB},
                                           Size{"4G", 4 * kGiB}, Size{"4GiB", 4 * kGiB}, Size{"1T", kTiB},
                                           Size{"65536k", 64 * kMiB}, Size{"4194304", 4 * kMiB}));

class CommandLineBadSize : public ::testing::TestWithParam<const char*> {};

TEST_P(CommandLineBadSize, IsAUsageErrorThatNamesTheOption) {
    const std::string error = usage_error({"run", "-m", GetParam()});
    EXPECT_TRUE(mentions(error, "memory")) << error;
}

INSTANTIATE_TEST_SUITE_P(Sizes, CommandLineBadSize,
                         ::testing::Values("-1", "-1M", "0x", "1.5G", "99999999999T", "99999999999999999999999", "12Q",
                                           "M", "", "1 G G", "12abc", "1,5G"));

TEST(CommandLine, PinsByDefaultWhenPrefaulting) {
    EXPECT_EQ(run({"--prefault=all"}).config.pin, Pin::kMlock);
    EXPECT_EQ(run({"--prefault=host"}).config.pin, Pin::kMlock);
    EXPECT_EQ(run({"--prefault=none"}).config.pin, Pin::kNone);
}

TEST(CommandLine, PinsAsAsked) {
    EXPECT_EQ(run({"--prefault=host", "--pin=longterm"}).config.pin, Pin::kLongterm);
    EXPECT_EQ(run({"--prefault=all", "--pin=none"}).config.pin, Pin::kNone);
    EXPECT_EQ(run({"--pin=mlock"}).config.pin, Pin::kMlock);
}

TEST(CommandLine, TakesNamesInAnyCase) {
    EXPECT_EQ(run({"--page-size=2m"}).config.page_size, PageSize::k2M);
    EXPECT_EQ(run({"--page-size=THP"}).config.page_size, PageSize::kThp);
    EXPECT_EQ(run({"--prefault=ALL"}).config.prefault.scope, Scope::kAll);
}

TEST(CommandLine, RefusesNamesThatAreNoChoice) {
    EXPECT_TRUE(mentions(usage_error({"run", "--page-size=3M"}), "--page-size"));
    EXPECT_TRUE(mentions(usage_error({"run", "--prefault=some"}), "--prefault"));
    EXPECT_TRUE(mentions(usage_error({"run", "--pin=glue"}), "--pin"));
    EXPECT_TRUE(mentions(usage_error({"run", "--prefault-when=later"}), "--prefault-when"));
    EXPECT_TRUE(mentions(usage_error({"run", "--prefault-method=none"}), "--prefault-method"));
    EXPECT_TRUE(mentions(usage_error({"run", "--numa=all"}), "--numa"));
}

TEST(CommandLine, RefusesUnknownOptions) {
    const std::string error = usage_error({"run", "--no-such-option"});
    EXPECT_TRUE(mentions(error, "--no-such-option")) << error;
    EXPECT_TRUE(mentions(error, "`vmm run --help`")) << error;
}

TEST(CommandLine, RefusesASecondKernel) {
    EXPECT_TRUE(mentions(usage_error({"run", "one", "two"}), "two"));
}

TEST(CommandLine, RefusesNumbersThatAreNone) {
    for (const char* const number : {"-1", "x", "1.5", "99999999999"}) {
        EXPECT_TRUE(mentions(usage_error({"run", "--vcpus", number}), "--vcpus")) << number;
        EXPECT_TRUE(mentions(usage_error({"run", "--prefault-workers", number}), "--prefault-workers")) << number;
        EXPECT_TRUE(mentions(usage_error({"run", "--numa-node", number}), "--numa-node")) << number;
    }
}

TEST(CommandLine, RefusesAnOptionWithoutItsValue) {
    for (const char* const option :
         {"--memory", "--vcpus", "--initrd", "--cmdline", "--prefault", "--prefault-workers", "--page-size", "--pin",
          "--serial", "--report", "--log-file", "--prefault-when", "--prefault-method", "--prefault-cpus",
          "--vcpu-cpus", "--device-cpus", "--numa-node", "--numa"}) {
        EXPECT_TRUE(mentions(usage_error({"run", option}), option)) << option;
    }
}

TEST(CommandLine, RefusesToBeQuietAndVerbose) {
    EXPECT_TRUE(mentions(usage_error({"run", "-q", "-v"}), "exclude each other"));
}

TEST(CommandLine, NeedsACommand) {
    EXPECT_NE(usage_error({}), "understood");
    EXPECT_NE(usage_error({"walk"}), "understood");
}

TEST(CommandLine, TakesOneCommandOnly) {
    EXPECT_NE(usage_error({"doctor", "run"}), "understood");
}

TEST(CommandLine, UnderstandsDoctor) {
    EXPECT_TRUE(std::holds_alternative<DoctorCommand>(parse({"doctor"})));
}

TEST(CommandLineHelp, MentionsEveryOption) {
    const auto help = text_for({"run", "--help"});
    ASSERT_TRUE(help);
    EXPECT_EQ(help->exit_code, 0);
    for (const char* const option :
         {"KERNEL",          "-m,--memory",        "-c,--vcpus",      "--initrd",       "--cmdline",
          "--prefault ",     "--prefault-workers", "--page-size",     "--pin",          "--serial",
          "--report",        "-v,--verbose",       "-q,--quiet",      "--log-file",     "-h,--help",
          "--prefault-when", "--prefault-method",  "--prefault-cpus", "--prefault-smm", "--vcpu-cpus",
          "--cpu ",          "--nested",           "--numa-node",     "--numa ",        "--reserve-hugepages",
          "--watch",         "--prefault-keep",    "--keep-every",    "--device-cpus"}) {
        EXPECT_TRUE(mentions(help->text, option)) << option << " is not in\n" << help->text;
    }
}

TEST(CommandLineHelp, SaysTheDefaults) {
    const auto help = text_for({"run", "--help"});
    ASSERT_TRUE(help);
    for (const char* const value : {"=512M", "=thp", "=none", "=stdio", "=mlock when prefaulting", "=before", "=auto",
                                    "=the CPUs they may use"}) {
        EXPECT_TRUE(mentions(help->text, value)) << value << " is not in\n" << help->text;
    }
}

TEST(CommandLineHelp, SaysTheExitStatuses) {
    const auto help = text_for({"run", "--help"});
    ASSERT_TRUE(help);
    EXPECT_TRUE(mentions(help->text, "Exit status:"));
}

TEST(CommandLineHelp, OfTheProgramNamesTheCommands) {
    const auto help = text_for({"--help"});
    ASSERT_TRUE(help);
    EXPECT_EQ(help->exit_code, 0);
    EXPECT_TRUE(mentions(help->text, "run"));
    EXPECT_TRUE(mentions(help->text, "doctor"));
}

TEST(CommandLineHelp, SaysTheVersion) {
    const auto version = text_for({"--version"});
    ASSERT_TRUE(version);
    EXPECT_EQ(version->exit_code, 0);
    EXPECT_TRUE(version->text.starts_with("vmm ")) << version->text;
}

TEST(CommandLine, ErrorOfAFileNamesTheHelpAtMostOnce) {
    const testing::TemporaryDirectory directory;
    const auto error_of = [&](const std::string& text) {
        const std::string path = directory.write("c.json", text);
        return usage_error({"run", "--config", path.c_str()});
    };
    for (const char* const text :
         {R"({"no-such": 1})", R"({"vcpus": "x"})", R"({"memory": 1.5})", "{", R"({"disk": {"path": "a", "x": 1}})",
          R"({"vcpus": -1})", R"({"vcpus": 18446744073709551615})", R"({"config": "c"})"}) {
        const std::string error = error_of(text);
        const std::size_t first = error.find("--help");
        EXPECT_TRUE(first == std::string::npos || error.find("--help", first + 1) == std::string::npos) << error;
        EXPECT_TRUE(mentions(error, "c.json")) << error;
    }
    EXPECT_FALSE(mentions(usage_error({"run", "--config", "/no/such/file"}), "--help"));
}

TEST(CommandLine, ErrorIsOneLineWhateverItQuotes) {
    const testing::TemporaryDirectory directory;
    const std::string path =
        directory.write("c.json", R"({"memory": "1\u001b[2J\n)" + std::string(100'000, 'G') + "\"}");
    for (const std::string& error :
         {usage_error({"run", "--config", path.c_str()}), usage_error({"run", "--memory", "1\x1b[2J\n\x7f"})}) {
        EXPECT_EQ(std::count(error.begin(), error.end(), '\n'), 1) << error;
        EXPECT_EQ(error.back(), '\n');
        EXPECT_FALSE(mentions(error, "\x1b")) << error;
        EXPECT_TRUE(mentions(error, "\\x1b[2J\\x0a")) << error;
        EXPECT_LT(error.size(), 3000U);
    }
}

TEST(CommandLine, SnapshotOnTakesASignalAndADirectory) {
    EXPECT_EQ(run().snapshot_on, std::nullopt);
    EXPECT_EQ(run({"--snapshot-on", "SIGUSR1:/x/a:b"}).snapshot_on, (SnapshotOn{SIGUSR1, "/x/a:b"}));
    EXPECT_EQ(run({"--snapshot-on=SIGUSR2:x"}).snapshot_on, (SnapshotOn{SIGUSR2, "x"}));
    EXPECT_TRUE(mentions(usage_error({"run", "--snapshot-on", "SIGTERM:x"}), "'SIGTERM' is neither SIGUSR1 nor"));
    EXPECT_TRUE(mentions(usage_error({"run", "--snapshot-on", "x"}), "say SIGUSR1:DIR"));
    EXPECT_TRUE(mentions(usage_error({"run", "--snapshot-on", "SIGUSR1"}), "names no directory"));
    EXPECT_TRUE(mentions(usage_error({"run", "--snapshot-on", "SIGUSR1:"}), "names no directory"));
    EXPECT_TRUE(mentions(usage_error({"run", "--snapshot-on", "SIGUSR1:x", "--dump-dtb", "y"}), "no guest runs"));
}

} // namespace
} // namespace vmm
