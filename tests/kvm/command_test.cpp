// The command as users run it: what it prints, what it leaves behind, and its exit status.

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>

#include "prefault/x86/second_level_host.hpp"
#include "support/kvm_command.hpp"
#include "support/kvm_machine.hpp"
#include "support/kvm_require.hpp"

namespace vmm::testing {
namespace {

class Command : public KvmTest {
  protected:
    /// Checks that there is one line on standard error that contains `part`, nothing on standard output, and this exit
    /// status.
    static void expect_refused(const std::vector<std::string>& arguments, int exit_status, const std::string& part) {
        const CommandResult result = run_command(arguments);
        EXPECT_EQ(result.exit_status, exit_status) << result.errors;
        EXPECT_EQ(result.output, "");
        EXPECT_NE(result.errors.find(part), std::string::npos) << result.errors;
        EXPECT_EQ(std::count(result.errors.begin(), result.errors.end(), '\n'), 1) << result.errors;
        EXPECT_TRUE(result.errors.starts_with("vmm: error: ")) << result.errors;
    }
    TemporaryDirectory directory_;
};

TEST_F(Command, UnknownOptionIsAUsageError) {
    expect_refused({"run", "--prefalt=all"}, 2, "--prefalt");
}

TEST_F(Command, UnknownChoiceNamesTheChoices) {
    expect_refused({"run", "--prefault=most"}, 2, "none");
}

TEST_F(Command, KernelThatDoesNotExistIsNamed) {
    expect_refused({"run", "/nowhere/vmlinuz"}, 1, "/nowhere/vmlinuz");
}

TEST_F(Command, FileThatIsNoKernelIsRefused) {
    expect_refused({"run", directory_.write("notes.txt", "just some text, and not a kernel")}, 1, "notes.txt");
}

TEST_F(Command, InitrdThatDoesNotExistIsNamed) {
    expect_refused({"run", "--initrd", "/nowhere/initrd"}, 1, "/nowhere/initrd");
}

TEST_F(Command, InitrdThatDoesNotFitIsRefused) {
    const std::string large = directory_.write("large", "x");
    std::filesystem::resize_file(large, 64 << 20);
    expect_refused({"run", "-m", "32M", "--initrd", large}, 1, "initrd");
}

TEST_F(Command, CommandLineThatIsTooLongIsRefused) {
    expect_refused({"run", "--cmdline", std::string(70'000, 'x')}, 1, "command line");
}

TEST_F(Command, MemoryOfZeroIsRefused) {
    expect_refused({"run", "-m", "0"}, 1, "memory");
}

TEST_F(Command, MemoryInBytesByMistakeGetsAHint) {
    expect_refused({"run", "-m", "512"}, 1, "512M");
}

TEST_F(Command, MemoryBeyondTheHostIsRefused) {
    expect_refused({"run", "-m", "15T"}, 1, "this host has");
}

TEST_F(Command, MemoryThatOverflowsIsAUsageError) {
    EXPECT_EQ(run_command({"run", "-m", "99999999999999T"}).exit_status, 2);
}

TEST_F(Command, MoreVcpusThanPossibleAreRefused) {
    expect_refused({"run", "-c", "255"}, 1, "255 vCPUs");
}

TEST_F(Command, HugePagePoolThatIsShortSaysWhatIsFreeAndHowToRaiseIt) {
    expect_refused({"run", "-m", "1T", "--page-size=2M"}, 1, "nr_hugepages");
}

TEST_F(Command, ReportThatCannotBeWrittenIsFoundBeforeTheGuestStarts) {
    expect_refused({"run", "--report", "/nowhere/report.json"}, 1, "/nowhere/report.json");
}

TEST_F(Command, DeviceTreeThatCannotBeWrittenIsFoundAtOnce) {
    expect_refused({"run", "--dump-dtb", "/nowhere/tree.dtb"}, 1, "write the device tree to /nowhere/tree.dtb");
    expect_refused({"run", "--dump-dtb", directory_ / "."}, 1, "Is a directory");
}

TEST_F(Command, DeviceTreeIsWrittenWholeAndNoGuestRuns) {
    const std::string tree = directory_.write("tree.dtb", "old");
    const std::string serial = directory_ / "serial";
    const CommandResult run = run_command({"run", "-m", "16M", "-c", "2", "--rng", "--transport", "mmio", "--cmdline",
                                           "quiet", "--serial", serial, "--dump-dtb", tree});
    EXPECT_EQ(run.exit_status, 0) << run.errors;
    EXPECT_EQ(run.output, "");
    EXPECT_EQ(run.errors, "");
    EXPECT_FALSE(std::filesystem::exists(serial));
    const std::string text = content_of(tree);
    EXPECT_TRUE(text.starts_with("\xd0\x0d\xfe\xed")) << text.substr(0, 4);
    for (const char* const part : {"console=ttyS0 ", " quiet", "cpu@1", "virtio@d0000000", "syscon-poweroff"}) {
        EXPECT_NE(text.find(part), std::string::npos) << part;
    }
}

TEST_F(Command, KernelThatCannotGetADeviceTreeIsRefusedAndLeavesAnOldOneAsItWas) {
    const std::string tree = directory_.write("tree.dtb", "old");
    const TestKernel kernel(kernels::kPowerOff);
    const std::string path = kernel.config().kernel_path;
    expect_refused({"run", path, "--hardware=fdt"}, 1, "--hardware=fdt");
    expect_refused({"run", path, "--hardware=both"}, 1, "CONFIG_OF");
    expect_refused({"run", path, "--dump-dtb", tree}, 1, "PVH");
    EXPECT_EQ(content_of(tree), "old");
}

TEST_F(Command, SerialFileThatCannotBeWrittenIsNamed) {
    expect_refused({"run", "--serial", "/nowhere/serial"}, 1, "/nowhere/serial");
}

TEST_F(Command, LogFileThatCannotBeWrittenIsNamed) {
    expect_refused({"run", "--log-file", "/nowhere/log"}, 1, "/nowhere/log");
}

TEST_F(Command, RefusalLeavesAnOldReportAsItWas) {
    const std::string report = directory_.write("report.json", "old");
    EXPECT_EQ(run_command({"run", "--report", report, "/nowhere/vmlinuz"}).exit_status, 1);
    EXPECT_EQ(content_of(report), "old");
}

TEST_F(Command, HelpNamesEveryOptionOfTheContract) {
    const CommandResult help = run_command({"run", "--help"});
    EXPECT_EQ(help.exit_status, 0);
    for (const char* option : {"--memory", "--vcpus", "--initrd", "--cmdline", "--prefault", "--prefault-workers",
                               "--page-size", "--pin", "--serial", "--report", "--verbose", "--quiet", "--log-file"}) {
        EXPECT_NE(help.output.find(option), std::string::npos) << option;
    }
}

TEST_F(Command, DoctorFindsThatAGuestCanRunHere) {
    const CommandResult doctor = run_command({"doctor"});
    EXPECT_EQ(doctor.exit_status, 0) << doctor.output;
    EXPECT_NE(doctor.output.find("second level"), std::string::npos);
}

TEST_F(Command, BuiltInGuestRunsOnPrefaultedMemoryWithoutASecondLevelFault) {
    const std::string report = directory_ / "report.json";
    const CommandResult run =
        run_command({"run", "--prefault=all", "--page-size=4K", "-m", "64M", "-c", "2", "--report", report});
    EXPECT_EQ(run.exit_status, 0) << run.errors;
    EXPECT_NE(run.output.find("summary cpus=2"), std::string::npos) << run.output;
    EXPECT_NE(content_of(report).find("\"second_level_faults_total\": 0"), std::string::npos) << content_of(report);
    EXPECT_NE(content_of(report).find("\"complete\": true"), std::string::npos);
    EXPECT_NE(content_of(report).find("\"exit\": \"poweroff\""), std::string::npos);
}

TEST_F(Command, WithoutPrefaultTheGuestTakesAFaultForEachPage) {
    const std::string report = directory_ / "report.json";
    EXPECT_EQ(run_command({"run", "--page-size=4K", "-m", "64M", "--report", report}).exit_status, 0);
    const std::string text = content_of(report);
    const auto at = text.find("\"second_level_faults_total\": ");
    ASSERT_NE(at, std::string::npos) << text;
    // 64 MiB are 16,384 pages. On shadow paging KVM maps neighbours of a page along with it.
    EXPECT_GT(std::stoul(text.substr(at + 29)), 1000U);
}

TEST_F(Command, ReportSaysHowLongItTookToGiveEverythingBack) {
    const std::string report = directory_ / "report.json";
    EXPECT_EQ(
        run_command({"run", "-q", "--prefault=all", "-m", "256M", "--page-size=4K", "--report", report}).exit_status,
        0);
    const std::string text = content_of(report);
    const std::string field = "\"teardown_seconds\": ";
    const auto at = text.find(field);
    ASSERT_NE(at, std::string::npos) << text;
    const double seconds = std::stod(text.substr(at + field.size()));
    EXPECT_GT(seconds, 0);
}

TEST_F(Command, ReportSaysByWhichMethodTheSecondLevelWasFilledAndWhy) {
    const std::string report = directory_ / "report.json";
    ASSERT_EQ(run_command({"run", "-q", "--prefault=all", "-m", "16M", "--report", report}).exit_status, 0);
    const std::string text = content_of(report);
    const bool shadow = text.find("\"second_level\": \"shadow\"") != std::string::npos;
    const bool has_ioctl = text.find("\"kvm_pre_fault_memory\": true") != std::string::npos;
    const bool nested = prefault::host_is_guest();
    EXPECT_NE(text.find(std::string("\"nested\": ") + (nested ? "true" : "false") + "\n  },"), std::string::npos)
        << text;
    const std::string method = !has_ioctl || shadow ? "touch" : nested ? "ioctl+touch" : "ioctl";
    EXPECT_NE(text.find("\"method\": \"" + method + "\""), std::string::npos) << text;
    const std::string reason = shadow ? "shadow paging" : "KVM_PRE_FAULT_MEMORY";
    const auto at = text.find("\"method_reason\": ");
    ASSERT_NE(at, std::string::npos) << text;
    EXPECT_NE(text.substr(at, text.find('\n', at) - at).find(reason), std::string::npos) << text;
}

TEST_F(Command, PrefaultByIoctlThatKvmDoesNotHaveIsRefused) {
    if (prefault::detect_second_level().kind != prefault::SecondLevelKind::kShadow) {
        GTEST_SKIP() << "this host has EPT or NPT";
    }
    const std::string serial = directory_ / "serial";
    expect_refused({"run", "--prefault=all", "--prefault-method=ioctl", "--serial", serial}, 1, "shadow paging");
    EXPECT_FALSE(std::filesystem::exists(serial));
}

TEST_F(Command, SerialOutputGoesToTheFileThatIsNamed) {
    const std::string serial = directory_ / "serial";
    const CommandResult run = run_command({"run", "-q", "-m", "16M", "--serial", serial});
    EXPECT_EQ(run.exit_status, 0);
    EXPECT_EQ(run.output, "");
    EXPECT_EQ(run.errors, "");
    EXPECT_NE(content_of(serial).find("summary"), std::string::npos);
}

TEST_F(Command, RefusalLeavesAnOldSerialFileAsItWas) {
    const std::string serial = directory_.write("serial", "old");
    EXPECT_EQ(run_command({"run", "--serial", serial, "/nowhere/vmlinuz"}).exit_status, 1);
    EXPECT_EQ(content_of(serial), "old");
}

TEST_F(Command, RefusalLeavesNoNewFileBehind) {
    const std::string serial = directory_ / "serial";
    const std::string log = directory_ / "log";
    EXPECT_EQ(run_command({"run", "--serial", serial, "/nowhere/vmlinuz"}).exit_status, 1);
    EXPECT_EQ(run_command({"run", "--log-file", log, "-m", "0"}).exit_status, 1);
    EXPECT_FALSE(std::filesystem::exists(serial));
    EXPECT_FALSE(std::filesystem::exists(log));
}

TEST_F(Command, MistypedLogFileMakesNoFolders) {
    EXPECT_EQ(run_command({"run", "--log-file", directory_ / "no/such/folder/log"}).exit_status, 1);
    EXPECT_FALSE(std::filesystem::exists(directory_ / "no"));
}

TEST_F(Command, SecondGuestOnADiskIsRefusedAndReadersShareIt) {
    const std::string disk = directory_.write("disk", std::string(4096, 'x'));
    const std::vector<std::string> endless{"run", "-q", "-m", "16M", "--cmdline", "passes=1000000", "--disk"};
    const auto with = [&](const std::string& option) {
        std::vector<std::string> arguments = endless;
        arguments.push_back(option);
        return arguments;
    };
    {
        const CommandBeside writer(with(disk));
        ASSERT_TRUE(eventually([&] { return writer.has_thread("blk0"); })) << writer.errors();
        expect_refused({"run", "--disk", disk}, 1, "cannot use the disk " + disk + ": another process");
    }
    // The kernel releases the killed guest's lock some time after its end. A command waits for that, but not for long.
    std::optional<CommandBeside> reader;
    ASSERT_TRUE(eventually([&] {
        if (!reader || reader->has_ended()) {
            reader.emplace(with(disk + ",ro"));
        }
        return reader->has_thread("blk0");
    })) << reader->errors();
    EXPECT_EQ(run_command({"run", "-q", "-m", "16M", "--disk", disk + ",ro"}).exit_status, 0);
    expect_refused({"run", "--disk", disk}, 1, "only readers can share a disk");
}

TEST_F(Command, MoreDisksThanCanBeSayHowManyThereCanBe) {
    std::vector<std::string> arguments{"run", "--transport", "mmio"};
    for (int i = 0; i < 20; ++i) {
        arguments.insert(arguments.end(),
                         {"--disk", directory_.write("disk" + std::to_string(i), std::string(512, 0))});
    }
    expect_refused(arguments, 1, "there are interrupt lines for 17, and 31 slots on a PCI bus (take --transport=pci)");
}

TEST_F(Command, ReportToStandardOutputComesAfterTheGuestsOutput) {
    const CommandResult run = run_command({"run", "-q", "-m", "16M", "--report", "/dev/stdout"});
    EXPECT_EQ(run.exit_status, 0);
    const auto summary = run.output.find("summary");
    const auto report = run.output.find("\"schema\": 1");
    ASSERT_NE(summary, std::string::npos) << run.output;
    ASSERT_NE(report, std::string::npos) << run.output;
    EXPECT_LT(summary, report);
}

TEST_F(Command, ReportToAPipeThatNobodyReadsIsRefused) {
    const std::string pipe = directory_ / "pipe";
    ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
    expect_refused({"run", "--report", pipe}, 1, "nobody reads");
}

TEST_F(Command, DisksThatCannotBeUsedAreRefusedByName) {
    const std::string disk = directory_ / "disk";
    expect_refused({"run", "--disk", disk}, 1, "cannot open the disk " + disk);
    expect_refused({"run", "--disk", directory_ / ""}, 1, "Is a directory");
    ASSERT_EQ(::mkfifo((directory_ / "pipe").c_str(), 0600), 0);
    expect_refused({"run", "--disk", directory_ / "pipe"}, 1, "neither a regular file nor a block device");
    std::ofstream(disk).flush();
    expect_refused({"run", "--disk", disk}, 1, "it is empty");
    std::filesystem::resize_file(disk, 100);
    expect_refused({"run", "--disk", disk}, 1, "no whole sectors");
}

TEST_F(Command, RunsWithItsStandardInputClosed) {
    const CommandResult run = run_command({"run", "-q", "-m", "16M"}, [] { ::close(STDIN_FILENO); });
    EXPECT_EQ(run.exit_status, 0) << run.errors;
    EXPECT_NE(run.output.find("summary"), std::string::npos);
}

TEST_F(Command, WithStandardErrorClosedWritesNoMessageIntoTheSerialFile) {
    const std::string serial = directory_ / "serial";
    run_command({"run", "-m", "16M", "--serial", serial}, [] { ::close(STDERR_FILENO); });
    EXPECT_EQ(content_of(serial).find("prefault:"), std::string::npos);
    EXPECT_NE(content_of(serial).find("summary"), std::string::npos);
}

TEST_F(Command, HangUpThatWasIgnoredByOurParentStaysIgnored) {
    CommandBeside command({"run", "-q", "-m", "64M", "--cmdline", "passes=300"}, [] { std::signal(SIGHUP, SIG_IGN); });
    // From the moment when there is a guest, as long as it exists.
    EXPECT_TRUE(eventually([&] { return command.has_thread("vcpu0") || command.has_ended(); })) << command.errors();
    command.send(SIGHUP);
    EXPECT_EQ(command.wait(), 0) << command.errors();
}

} // namespace
} // namespace vmm::testing
