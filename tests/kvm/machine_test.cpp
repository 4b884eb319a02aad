// Whole machines: how they start, end, fail, and what they leave behind.

#include "vmm/machine.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "devices/acpi_power.hpp"
#include "kvm/system.hpp"
#include "prefault/host/cpu_list.hpp"
#include "support/host_errors.hpp"
#include "support/host_pipe.hpp"
#include "support/host_process_facts.hpp"
#include "support/kvm_machine.hpp"
#include "support/kvm_require.hpp"
#include "vmm/machine/memory_map.hpp"

namespace vmm {
namespace {

using namespace std::chrono_literals;
using testing::error_of;
using testing::mentions;
using testing::read_available;
using testing::TestKernel;
namespace kernels = testing::kernels;

using MachineTest = testing::KvmTest;

Config builtin_guest(std::uint64_t memory_bytes = 32 * kMiB) {
    Config config;
    config.memory_bytes = memory_bytes;
    return config;
}

/// Runs `machine` until `when` returns on another thread, then asks the machine to stop. Returns how it ended.
template <typename When>
ExitReason run_until(Machine& machine, When when) {
    std::jthread stopper([&] {
        when();
        machine.request_stop();
    });
    return machine.run();
}

ExitReason run_for(Machine& machine, std::chrono::milliseconds time) {
    return run_until(machine, [time] { std::this_thread::sleep_for(time); });
}

TEST(TestKernels, UseTheRegistersOfTheBoard) {
    EXPECT_EQ(memory_map::kAcpiPowerPort + devices::AcpiPower::kSleepControlOffset, 0x600U);
    EXPECT_EQ(memory_map::kAcpiPowerPort + devices::AcpiPower::kResetOffset, 0x602U);
    EXPECT_EQ(devices::AcpiPower::kS5SleepType << 2 | 0x20, 0x34);
    EXPECT_EQ(devices::AcpiPower::kResetValue, 6);
    EXPECT_EQ(memory_map::kCom1Port, 0x3f8);
    EXPECT_EQ(memory_map::kI8042Port, 0x60);
}

class BuiltInGuest : public testing::KvmTest {
  protected:
    /// Runs the built-in guest to its end; `output_` has the output of its serial port.
    ExitReason run(Config config, bool prefault) {
        const testing::Pipe pipe;
        config.serial.output_fd = pipe.writer.get();
        machine_ = std::make_unique<Machine>(config);
        if (prefault) {
            machine_->prefault();
        }
        const ExitReason reason = machine_->run();
        output_ = read_available(pipe.reader.get());
        return reason;
    }
    std::unique_ptr<Machine> machine_;
    std::string output_;
};

TEST_F(BuiltInGuest, RunsAndPowersOff) {
    EXPECT_EQ(run(builtin_guest(), false), ExitReason::kPowerOff);
    EXPECT_TRUE(mentions(output_, "guest=vmm-builtin cpus=1")) << output_;
    EXPECT_TRUE(mentions(output_, "summary ")) << output_;
}

TEST_F(BuiltInGuest, FindsItsHardwareInADeviceTreeAloneAndTakesNoSecondLevelFault) {
    Config config = builtin_guest();
    config.hardware = HardwareDescription::kFdt;
    config.transport = VirtioTransport::kMmio;
    config.vcpus = 3;
    config.rng = true;
    config.prefault = {.scope = prefault::Scope::kAll, .workers = 2};
    EXPECT_EQ(run(config, true), ExitReason::kPowerOff);
    EXPECT_EQ(machine_->report().second_level_faults_total(), 0U);
    for (const char* const line :
         {"guest=vmm-builtin cpus=3 ", "fdt cpus=3\r", "fdt memory=0x0 bytes=0x9fc00\r",
          "fdt memory=0x100000 bytes=0x1f00000\r", "fdt virtio-mmio=0xd0000000 irq=5\r", "fdt serial=0x3f8 irq=4\r",
          "fdt power-off=0xd0020000 value=0x34\r", "summary cpus=3 "}) {
        EXPECT_TRUE(mentions(output_, line)) << line << " is not in\n" << output_;
    }
    EXPECT_FALSE(mentions(output_, "warning")) << output_;
}

TEST_F(BuiltInGuest, OfADefaultConfigIsPrefaultedByAllCpusAndLocked) {
    Config config = builtin_guest(512 * kMiB); // There is work for each CPU, also if there are many.
    config.prefault.scope = prefault::Scope::kAll;
    EXPECT_EQ(run(config, true), ExitReason::kPowerOff);
    EXPECT_EQ(machine_->report().prefault.workers,
              std::min<std::size_t>(prefault::usable_cpu_list().size(), 256)); // at least 2 MiB for each CPU
    EXPECT_EQ(machine_->report().pin, prefault::Pin::kMlock);
    EXPECT_EQ(machine_->report().second_level_faults_total(), 0U);
}

TEST_F(BuiltInGuest, KeepsTheNumberOfWorkersAndThePinThatAreChosen) {
    Config config = builtin_guest();
    config.prefault = {.scope = prefault::Scope::kAll, .workers = 1};
    config.pin = prefault::Pin::kNone;
    EXPECT_EQ(run(config, true), ExitReason::kPowerOff);
    EXPECT_EQ(machine_->report().prefault.workers, 1U);
    EXPECT_EQ(machine_->report().pin, prefault::Pin::kNone);
}

TEST_F(BuiltInGuest, HasBothDescriptionsOfItsHardware) {
    Config config = builtin_guest();
    config.hardware = HardwareDescription::kBoth;
    config.vcpus = 2;
    EXPECT_EQ(run(config, false), ExitReason::kPowerOff);
    EXPECT_TRUE(mentions(output_, "fdt cpus=2\r")) << output_;
    EXPECT_TRUE(mentions(output_, "summary cpus=2 ")) << output_;
}

TEST_F(BuiltInGuest, HasNoDeviceTreeUnlessOneIsAskedFor) {
    EXPECT_EQ(run(builtin_guest(), false), ExitReason::kPowerOff);
    EXPECT_FALSE(mentions(output_, "fdt")) << output_;
    EXPECT_TRUE(machine_->device_tree().empty());
}

TEST_F(BuiltInGuest, FillsInTheReport) {
    EXPECT_EQ(run(builtin_guest(), false), ExitReason::kPowerOff);
    const RunReport& report = machine_->report();
    EXPECT_EQ(report.exit, ExitReason::kPowerOff);
    EXPECT_EQ(report.memory_bytes, 32 * kMiB);
    EXPECT_EQ(report.vcpus, 1U);
    EXPECT_GT(report.guest_seconds, 0);
    EXPECT_GT(report.seconds_to_first_instruction, 0);
    ASSERT_EQ(report.second_level_faults.size(), 1U);
    EXPECT_GT(report.second_level_faults[0], 0U) << "nothing was populated beforehand";
    EXPECT_GT(report.resident_overhead_bytes.value(), 0U);
    EXPECT_EQ(machine_->crash_description(), "");
}

TEST_F(BuiltInGuest, TakesNoSecondLevelFaultAfterAWholePrefault) {
    Config config = builtin_guest();
    config.prefault = {.scope = prefault::Scope::kAll, .workers = 2};
    EXPECT_EQ(run(config, true), ExitReason::kPowerOff);
    EXPECT_TRUE(machine_->report().prefault.complete);
    EXPECT_EQ(machine_->report().second_level_faults_total(), 0U);
    EXPECT_TRUE(mentions(output_, "summary ")) << output_;
}

TEST_F(BuiltInGuest, TakesNoSecondLevelFaultWhicheverWayIsTaken) {
    using prefault::Method;
    const bool has_ioctl = prefault::detect_second_level().kind != prefault::SecondLevelKind::kShadow &&
                           kvm::System().extension(KVM_CAP_PRE_FAULT_MEMORY) != 0;
    for (const Method method : {Method::kTouch, Method::kIoctl}) {
        if (method == Method::kIoctl && !has_ioctl) {
            continue;
        }
        Config config = builtin_guest();
        config.prefault = {.scope = prefault::Scope::kAll, .method = method, .workers = 2};
        EXPECT_EQ(run(config, true), ExitReason::kPowerOff);
        EXPECT_EQ(machine_->report().prefault.method, method);
        EXPECT_TRUE(machine_->report().prefault.complete) << to_string(method);
        EXPECT_EQ(machine_->report().second_level_faults_total(), 0U) << to_string(method);
    }
}

TEST_F(BuiltInGuest, TakesNoSecondLevelFaultWithTheRolesOfBothModesFilled) {
    if (prefault::detect_second_level().kind == prefault::SecondLevelKind::kShadow ||
        kvm::System().extension(KVM_CAP_X86_SMM) == 0) {
        GTEST_SKIP() << "shadow paging, or a KVM without system management mode";
    }
    Config config = builtin_guest();
    config.prefault = {.scope = prefault::Scope::kAll, .workers = 2, .smm = true};
    EXPECT_EQ(run(config, true), ExitReason::kPowerOff);
    const prefault::Report& report = machine_->report().prefault;
    EXPECT_TRUE(report.complete) << report.problem;
    EXPECT_EQ(report.smm_mapped.bytes(), config.memory_bytes);
    EXPECT_EQ(machine_->report().second_level_faults_total(), 0U);
}

TEST_F(BuiltInGuest, TakesFaultsAfterAPrefaultOfTheHostAlone) {
    Config config = builtin_guest();
    config.prefault = {.scope = prefault::Scope::kHost, .workers = 2};
    EXPECT_EQ(run(config, true), ExitReason::kPowerOff);
    EXPECT_TRUE(machine_->report().prefault.complete);
    EXPECT_GT(machine_->report().second_level_faults_total(), 0U);
}

TEST_F(BuiltInGuest, RunsOnTheLeastMemory) {
    EXPECT_EQ(run(builtin_guest(Config::kMinMemoryBytes), false), ExitReason::kPowerOff);
    EXPECT_TRUE(mentions(output_, "summary ")) << output_;
}

TEST_F(BuiltInGuest, UsesAllItsVcpus) {
    Config config = builtin_guest();
    config.vcpus = 3;
    EXPECT_EQ(run(config, false), ExitReason::kPowerOff);
    EXPECT_TRUE(mentions(output_, "cpus=3")) << output_;
    EXPECT_EQ(machine_->report().second_level_faults.size(), 3U);
}

TEST_F(BuiltInGuest, HearsItsCommandLine) {
    Config config = builtin_guest();
    config.command_line = "passes=1";
    EXPECT_EQ(run(config, false), ExitReason::kPowerOff);
    EXPECT_TRUE(mentions(output_, "passes=1")) << output_;
}

TEST_F(BuiltInGuest, SaysTheSameWithoutASerialPort) {
    Machine machine(builtin_guest());
    EXPECT_EQ(machine.run(), ExitReason::kPowerOff);
}

TEST_F(MachineTest, ThatWritesTheSleepRegisterIsPoweredOff) {
    const TestKernel kernel(kernels::kPowerOff);
    EXPECT_EQ(Machine(kernel.config()).run(), ExitReason::kPowerOff);
}

TEST_F(MachineTest, ThatAsksTheKeyboardControllerReboots) {
    const TestKernel kernel(kernels::kReset);
    EXPECT_EQ(Machine(kernel.config()).run(), ExitReason::kReboot);
}

TEST_F(MachineTest, ThatWritesTheResetRegisterReboots) {
    const TestKernel kernel(kernels::kAcpiReset);
    EXPECT_EQ(Machine(kernel.config()).run(), ExitReason::kReboot);
}

TEST_F(MachineTest, ThatWritesTheResetRegisterInMemoryReboots) {
    EXPECT_EQ(to_integer(memory_map::kPowerRegisters) + devices::AcpiPower::kResetOffset, 0xd0020002U);
    const TestKernel kernel(kernels::kResetByMemory);
    EXPECT_EQ(Machine(kernel.config()).run(), ExitReason::kReboot);
}

TEST_F(MachineTest, ThatCrashesSaysWhereWithItsRegisters) {
    const TestKernel kernel(kernels::kTripleFault);
    Machine machine(kernel.config());
    EXPECT_EQ(machine.run(), ExitReason::kCrash);
    EXPECT_EQ(machine.report().exit, ExitReason::kCrash);
    const std::string& description = machine.crash_description();
    EXPECT_TRUE(mentions(description, "vCPU 0: triple fault")) << description;
    EXPECT_TRUE(mentions(description, "rip ")) << description;
    EXPECT_TRUE(mentions(description, "cr3 ")) << description;
}

TEST_F(MachineTest, ThatSpinsForEverIsStopped) {
    const TestKernel kernel(kernels::kSpin);
    Machine machine(kernel.config());
    EXPECT_EQ(run_for(machine, 50ms), ExitReason::kStopped);
}

TEST_F(MachineTest, ThatHasHaltedForEverIsStopped) {
    const TestKernel kernel(kernels::kHalt);
    Machine machine(kernel.config());
    EXPECT_EQ(run_for(machine, 50ms), ExitReason::kStopped);
}

TEST_F(MachineTest, WithVcpusNobodyStartedIsStopped) {
    const TestKernel kernel(kernels::kSpin);
    Config config = kernel.config();
    config.vcpus = 4;
    Machine machine(config);
    EXPECT_EQ(run_for(machine, 50ms), ExitReason::kStopped);
}

TEST_F(MachineTest, ThatIsStoppedBeforeItRunsDoesNotRun) {
    const TestKernel kernel(kernels::kSpin);
    Machine machine(kernel.config());
    machine.request_stop(ExitReason::kSignal);
    EXPECT_EQ(machine.run(), ExitReason::kSignal); // It would never return if the request were lost.
}

TEST_F(MachineTest, ThatIsStoppedBeforeItRunsReportsNoFirstInstruction) {
    const TestKernel kernel(kernels::kSpin);
    Machine machine(kernel.config());
    machine.request_stop();
    machine.run();
    EXPECT_EQ(machine.report().seconds_to_first_instruction, 0);
    EXPECT_EQ(machine.report().guest_seconds, 0);
    EXPECT_EQ(machine.report().second_level_faults_total(), 0U);
}

TEST_F(MachineTest, StoppedBeforeItsPrefaultDoesNotPopulate) {
    const TestKernel kernel(kernels::kSpin);
    Config config = kernel.config();
    config.prefault = {.scope = prefault::Scope::kAll, .workers = 1};
    Machine machine(config);
    machine.request_stop();
    EXPECT_FALSE(machine.prefault().complete);
    EXPECT_EQ(machine.run(), ExitReason::kStopped);
}

TEST_F(MachineTest, FirstReasonToStopIsTheOneThatCounts) {
    const TestKernel kernel(kernels::kPowerOff);
    Machine machine(kernel.config());
    machine.request_stop(ExitReason::kSignal);
    machine.request_stop(ExitReason::kStopped);
    EXPECT_EQ(machine.run(), ExitReason::kSignal);
}

TEST_F(MachineTest, EndsTheSameWayManyTimes) {
    const TestKernel kernel(kernels::kPowerOff);
    for (int round = 0; round < 20; ++round) {
        ASSERT_EQ(Machine(kernel.config()).run(), ExitReason::kPowerOff) << round;
    }
}

TEST_F(MachineTest, ThatFloodsASerialPortNobodyReadsIsStopped) {
    const TestKernel kernel(kernels::kFloodSerial);
    const testing::Pipe pipe;
    Config config = kernel.config();
    config.serial.output_fd = pipe.writer.get();
    Machine machine(config);
    EXPECT_EQ(run_for(machine, 300ms), ExitReason::kStopped);
}

TEST_F(MachineTest, WhoseSerialPortNobodyReadsGoesOnToItsEndAndCountsWhatWasDropped) {
    const TestKernel kernel(kernels::kManyBytesThenPowerOff);
    const testing::Pipe pipe;
    ASSERT_GT(::fcntl(pipe.writer.get(), F_SETPIPE_SZ, 4096), 0);
    Config config = kernel.config();
    config.serial.output_fd = pipe.writer.get();
    std::mutex lock;
    std::string log;
    config.log = [&](LogLevel level, std::string_view line) {
        const std::lock_guard hold(lock);
        log += level == LogLevel::kWarning ? std::string(line) + "\n" : "";
    };
    EXPECT_EQ(Machine(config).run(), ExitReason::kPowerOff);
    const std::size_t arrived = read_available(pipe.reader.get()).size();
    const std::string dropped = std::to_string(kernels::kManyBytes - arrived);
    EXPECT_TRUE(mentions(log, dropped + " bytes of serial output were dropped")) << log;
}

TEST_F(MachineTest, PassesSerialInputToTheGuestAndItsAnswerBack) {
    const TestKernel kernel(kernels::kEcho);
    const testing::Pipe keyboard;
    const testing::Pipe screen;
    Config config = kernel.config();
    config.serial.input_fd = keyboard.reader.get();
    config.serial.output_fd = screen.writer.get();
    Machine machine(config);
    const std::string text = "what is said comes back";
    testing::write_text(keyboard.writer.get(), text);
    std::string heard;
    run_until(machine, [&] {
        testing::eventually([&] {
            heard += read_available(screen.reader.get());
            return heard.size() >= text.size();
        });
    });
    EXPECT_EQ(heard, text);
}

TEST_F(MachineTest, TakesTwoHundredFiftyFourVcpus) {
    const TestKernel kernel(kernels::kPowerOff);
    Config config = kernel.config();
    config.vcpus = 254;
    if (kvm::System().max_vcpus() < config.vcpus) {
        GTEST_SKIP() << "this host's KVM takes fewer vCPUs";
    }
    Machine machine(config);
    EXPECT_EQ(machine.run(), ExitReason::kPowerOff);
    EXPECT_EQ(machine.report().second_level_faults.size(), 254U);
}

TEST_F(MachineTest, OfMoreVcpusThanThisKvmTakesIsAnError) {
    const kvm::System system;
    const unsigned most = std::min(system.max_vcpus(), system.max_vcpu_ids());
    Config config = builtin_guest();
    config.vcpus = 254;
    config.prefault = {.scope = prefault::Scope::kAll, .workers = Config::kMaxPrefaultWorkers};
    if (config.vcpus + Config::kMaxPrefaultWorkers <= most) {
        GTEST_SKIP() << "this host's KVM takes as many as can be asked for";
    }
    EXPECT_TRUE(mentions(error_of([&] { return std::make_unique<Machine>(config); }), "Config::prefault.workers"));
}

TEST_F(MachineTest, TwoRunAtOnce) {
    const TestKernel kernel(kernels::kPowerOff);
    std::vector<std::future<ExitReason>> runs;
    for (int i = 0; i < 2; ++i) {
        runs.push_back(std::async(std::launch::async, [&kernel] { return Machine(kernel.config()).run(); }));
    }
    for (auto& run : runs) {
        EXPECT_EQ(run.get(), ExitReason::kPowerOff);
    }
}

/// The resources that a process must give back.
struct Resources {
    std::size_t descriptors = testing::count_descriptors();
    std::size_t threads = testing::count_threads();
    std::uint64_t address_space = testing::mapped_address_space();
};

void expect_as_before(const Resources& before, std::uint64_t slack_bytes, const std::string& after_what) {
    const Resources now;
    EXPECT_EQ(now.descriptors, before.descriptors) << after_what;
    EXPECT_EQ(now.threads, before.threads) << after_what;
    EXPECT_LT(now.address_space, before.address_space + slack_bytes) << after_what;
}

TEST_F(MachineTest, GivesEverythingBack) {
    const TestKernel kernel(kernels::kPowerOff);
    Config config = kernel.config();
    config.memory_bytes = 64 * kMiB;
    config.vcpus = 2;
    config.prefault = {.scope = prefault::Scope::kAll, .workers = 2};
    const auto live_and_die = [&](int round) {
        Machine machine(config);
        if (round % 2 == 0) {
            machine.prefault();
            machine.run();
        }
    };
    live_and_die(0); // From now on the memory that the C library keeps does not change.
    live_and_die(1);
    const Resources before;
    for (int round = 0; round < 20; ++round) {
        live_and_die(round);
    }
    expect_as_before(before, 5 * config.memory_bytes, "twenty machines");
}

TEST_F(MachineTest, ThatCannotBeMadeLeavesNothingBehind) {
    const TestKernel kernel(kernels::kPowerOff);
    const testing::TemporaryDirectory directory;
    struct Case {
        const char* what;
        std::function<void(Config&)> spoil;
    };
    std::vector<Case> cases{
        {"no memory", [](Config& config) { config.memory_bytes = 0; }},
        {"half a page", [](Config& config) { config.memory_bytes += 1; }},
        {"too much memory", [](Config& config) { config.memory_bytes = 16 * kTiB; }},
        {"no vCPU", [](Config& config) { config.vcpus = 0; }},
        {"too many vCPUs", [](Config& config) { config.vcpus = 255; }},
        {"no worker", [](Config& config) { config.prefault.workers = 0; }},
        {"too few huge pages",
         [](Config& config) {
             config.memory_bytes = 16 * kTiB;
             config.page_size = PageSize::k2M;
         }},
        {"no kernel", [&](Config& config) { config.kernel_path = directory / "missing"; }},
        {"no kernel in the file",
         [&](Config& config) { config.kernel_path = directory.write("text", "not a kernel"); }},
        {"a kernel that does not fit", [](Config& config) { config.memory_bytes = Config::kMinMemoryBytes; }},
        {"no initrd", [&](Config& config) { config.initrd_path = directory / "missing"; }},
        {"an initrd that does not fit",
         [&](Config& config) { config.initrd_path = directory.write("large", std::string(20 * kMiB, 'x')); }},
        {"a command line that does not fit", [](Config& config) { config.command_line = std::string(100'000, 'x'); }},
    };
    if (prefault::detect_second_level().kind == prefault::SecondLevelKind::kShadow) {
        const auto by_ioctl = [](Config& config) {
            config.prefault = {.scope = prefault::Scope::kAll, .method = prefault::Method::kIoctl};
        };
        cases.push_back({"an ioctl that this KVM has not", by_ioctl});
        const auto smm = [](Config& config) { config.prefault = {.scope = prefault::Scope::kAll, .smm = true}; };
        cases.push_back({"a mode that has no second level of its own", smm});
    }
    static_cast<void>(std::make_unique<Machine>(kernel.config())); // see above
    const TestKernel large_kernel(testing::kernels::Code(3 * kMiB, 0x90));
    for (const Case& bad : cases) {
        Config config = std::string(bad.what) == "a kernel that does not fit" ? large_kernel.config() : kernel.config();
        bad.spoil(config);
        const Resources before;
        EXPECT_NE(error_of([&] { return std::make_unique<Machine>(config); }), "") << bad.what;
        expect_as_before(before, 64 * kMiB, bad.what);
    }
}

TEST_F(MachineTest, WithoutDescriptorsLeftIsAnErrorThatSaysSo) {
#ifdef VMM_SANITIZED
    GTEST_SKIP() << "the sanitizers' own runtime needs descriptors to look at an object";
#endif
    const TestKernel kernel(kernels::kPowerOff);
    rlimit before{};
    ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
    const std::size_t open_now = testing::count_descriptors();
    std::string last_error = "none";
    for (std::size_t room = 0; room < 64 && !last_error.empty(); ++room) {
        rlimit tight = before;
        tight.rlim_cur = open_now + room;
        ::setrlimit(RLIMIT_NOFILE, &tight);
        last_error = error_of([&] { return std::make_unique<Machine>(kernel.config()); });
        ::setrlimit(RLIMIT_NOFILE, &before);
        EXPECT_TRUE(last_error.empty() || mentions(last_error, "ulimit -n")) << last_error;
        EXPECT_EQ(testing::count_descriptors(), open_now) << "with room for " << room;
    }
    EXPECT_EQ(last_error, "") << "64 descriptors are enough for a small machine";
}

} // namespace
} // namespace vmm
