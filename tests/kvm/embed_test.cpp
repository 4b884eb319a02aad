// The library in somebody else's program: the program's devices and observers, pause, statistics, many machines at
// once.

#include <gtest/gtest.h>
#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kvm/host/error.hpp"
#include "support/host_errors.hpp"
#include "support/host_process_facts.hpp"
#include "support/kvm_machine.hpp"
#include "support/kvm_require.hpp"
#include "vmm/device.hpp"
#include "vmm/machine.hpp"
#include "vmm/vmm.h"

namespace vmm {
namespace {

using namespace std::chrono_literals;
using testing::error_of;
using testing::mentions;
using testing::TestKernel;
namespace kernels = testing::kernels;

using Embedding = testing::KvmTest;

constexpr std::uint16_t kPort = 0x5000;
/// Reads 4 bytes at kPort for ever: mov $0x5000, %dx; in %dx, %eax; jmp in
const kernels::Code kReadPortForEver{0x66, 0xba, 0x00, 0x50, 0xed, 0xeb, 0xfd};
/// Reads 4 bytes at 0xd8000000, writes them to kPort, and so on: mov 0xd8000000, %eax; mov $0x5000, %dx; out %eax, %dx
const kernels::Code kCopyMmioToPort{0xa1, 0x00, 0x00, 0x00, 0xd8, 0x66, 0xba, 0x00, 0x50, 0xef, 0xeb, 0xf4};
/// Says '!' on the serial port and powers off.
const kernels::Code kShoutThenPowerOff{0x66, 0xba, 0xf8, 0x03, 0xb0, 0x21, 0xee, 0x66,
                                       0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xeb, 0xfe};

/// A device of two functions.
class FunctionDevice final : public CustomDevice {
  public:
    using Read = std::function<void(std::uint64_t, std::span<std::byte>)>;
    using Write = std::function<void(std::uint64_t, std::span<const std::byte>)>;

    FunctionDevice(Read on_read, Write on_write) : on_read_(std::move(on_read)), on_write_(std::move(on_write)) {}
    void read(std::uint64_t offset, std::span<std::byte> data) override { on_read_(offset, data); }
    void write(std::uint64_t offset, std::span<const std::byte> data) override { on_write_(offset, data); }

  private:
    Read on_read_;
    Write on_write_;
};

DeviceConfig port_device(
    FunctionDevice::Read on_read, FunctionDevice::Write on_write = [](auto, auto) {}) {
    DeviceConfig config;
    config.name = "test";
    config.base = kPort;
    config.size = 4;
    config.make = [on_read = std::move(on_read), on_write = std::move(on_write)](const DeviceHost&) {
        return std::make_shared<FunctionDevice>(on_read, on_write);
    };
    return config;
}

TEST_F(Embedding, DeviceIsReadAndWritten) {
    const TestKernel kernel(kCopyMmioToPort);
    Config config = kernel.config();
    std::atomic<std::uint32_t> written{0};
    Machine* machine = nullptr;
    config.devices.push_back(port_device([](auto, auto) {},
                                         [&](std::uint64_t offset, std::span<const std::byte> data) {
                                             ASSERT_EQ(offset, 0U);
                                             ASSERT_EQ(data.size(), 4U);
                                             std::uint32_t value = 0;
                                             std::memcpy(&value, data.data(), sizeof value);
                                             written = value;
                                             machine->request_stop();
                                         }));
    DeviceConfig mmio = port_device([](std::uint64_t, std::span<std::byte> data) {
        const std::uint32_t value = 0x12345678;
        std::memcpy(data.data(), &value, std::min(data.size(), sizeof value));
    });
    mmio.space = DeviceSpace::kMmio;
    mmio.base = 0xd8000000;
    config.devices.push_back(mmio);
    Machine made(config);
    machine = &made;
    EXPECT_EQ(made.run(), ExitReason::kStopped);
    EXPECT_EQ(written, 0x12345678U);
}

TEST_F(Embedding, WhatADeviceThrowsEndsTheRunAndComesOutOfIt) {
    const TestKernel kernel(kReadPortForEver);
    Config config = kernel.config();
    config.devices.push_back(port_device([](auto, auto) { throw std::out_of_range("the device's own"); }));
    Machine machine(config);
    EXPECT_THROW(machine.run(), std::out_of_range);
    EXPECT_EQ(machine.statistics().state, RunState::kEnded);
}

TEST_F(Embedding, WhatASinkThrowsEndsTheRunAndComesOutOfIt) {
    const TestKernel kernel(kernels::kFloodSerial);
    Config config = kernel.config();
    config.serial.sink = [](std::span<const std::byte>) { throw std::out_of_range("the sink's own"); };
    Machine machine(config);
    EXPECT_THROW(machine.run(), std::out_of_range);
}

TEST_F(Embedding, WhatTheProgressSinkOfABackgroundPrefaultThrowsEndsTheRunAndComesOutOfIt) {
    const TestKernel kernel(kernels::kSpin);
    Config config = kernel.config();
    config.prefault.scope = prefault::Scope::kAll;
    config.prefault_when = PrefaultWhen::kBackground;
    config.prefault.progress = [](const prefault::Progress&) { throw std::out_of_range("the sink's own"); };
    Machine machine(config);
    EXPECT_THROW(machine.run(), std::out_of_range);
}

TEST_F(Embedding, WhatTheLogThrowsComesOutOfConstruction) {
    const TestKernel kernel(kernels::kSpin);
    Config config = kernel.config();
    config.log = [](LogLevel, std::string_view) { throw std::out_of_range("the log's own"); };
    EXPECT_THROW(Machine{config}, std::out_of_range);
}

TEST_F(Embedding, WhatTheMakerOfADeviceThrowsLeavesNothingBehind) {
    const TestKernel kernel(kernels::kSpin);
    Config config = kernel.config();
    config.devices.push_back(port_device([](auto, auto) {}));
    config.devices.front().make = [](const DeviceHost&) -> std::shared_ptr<CustomDevice> {
        throw std::out_of_range("the maker's own");
    };
    EXPECT_THROW(Machine{config}, std::out_of_range);
    const std::size_t descriptors = testing::count_descriptors();
    const std::size_t threads = testing::count_threads();
    EXPECT_THROW(Machine{config}, std::out_of_range);
    EXPECT_EQ(testing::count_descriptors(), descriptors);
    EXPECT_EQ(testing::count_threads(), threads);
}

TEST_F(Embedding, SinkHearsTheGuestAndObserverOfTheEndIsTold) {
    const TestKernel kernel(kShoutThenPowerOff);
    Config config = kernel.config();
    std::string heard;
    std::vector<ExitReason> ends;
    config.serial.sink = [&](std::span<const std::byte> bytes) {
        for (const std::byte byte : bytes) {
            heard += static_cast<char>(byte);
        }
    };
    config.ended = [&](ExitReason reason) { ends.push_back(reason); };
    EXPECT_EQ(Machine(config).run(), ExitReason::kPowerOff);
    EXPECT_EQ(heard, "!");
    EXPECT_EQ(ends, std::vector{ExitReason::kPowerOff});
}

TEST_F(Embedding, PausedGuestStandsStillAndGoesOn) {
    const TestKernel kernel(kReadPortForEver);
    Config config = kernel.config();
    config.vcpus = 3; // Two machines that nobody has started are paused, too.
    std::atomic<std::uint64_t> reads{0};
    config.devices.push_back(port_device([&](auto, auto) { ++reads; }));
    Machine machine(config);
    const ExitReason reason = testing::run_beside(machine, [&] {
        for (int round = 0; round < 5; ++round) {
            const std::uint64_t before = reads;
            EXPECT_TRUE(testing::eventually([&] { return reads > before + 10; }));
            machine.pause();
            EXPECT_EQ(machine.statistics().state, RunState::kPaused);
            const std::uint64_t held = reads;
            std::this_thread::sleep_for(5ms);
            EXPECT_EQ(reads, held);
            machine.pause();
            machine.resume();
            EXPECT_EQ(machine.statistics().state, RunState::kRunning);
        }
        machine.request_stop();
    });
    EXPECT_EQ(reason, ExitReason::kStopped);
}

TEST_F(Embedding, PausedBeforeItRunsBeginsWhenResumed) {
    const TestKernel kernel(kReadPortForEver);
    Config config = kernel.config();
    std::atomic<std::uint64_t> reads{0};
    config.devices.push_back(port_device([&](auto, auto) { ++reads; }));
    Machine machine(config);
    machine.pause();
    testing::run_beside(machine, [&] {
        EXPECT_TRUE(testing::eventually([&] { return machine.statistics().state == RunState::kPaused; }));
        std::this_thread::sleep_for(5ms);
        EXPECT_EQ(reads, 0U);
        machine.resume();
        EXPECT_TRUE(testing::eventually([&] { return reads > 0; }));
        machine.request_stop();
    });
}

TEST_F(Embedding, PausedGuestIsStopped) {
    const TestKernel kernel(kernels::kSpin);
    Machine machine(kernel.config());
    const ExitReason reason = testing::run_beside(machine, [&] {
        EXPECT_TRUE(testing::eventually([&] { return machine.statistics().state == RunState::kRunning; }));
        machine.pause();
        machine.request_stop();
    });
    EXPECT_EQ(reason, ExitReason::kStopped);
}

TEST_F(Embedding, PauseFromADevicesOwnAccessIsAnError) {
    const TestKernel kernel(kReadPortForEver);
    Config config = kernel.config();
    Machine* machine = nullptr;
    config.devices.push_back(port_device([&](auto, auto) { machine->pause(); }));
    Machine made(config);
    machine = &made;
    EXPECT_THROW(made.run(), UsageError);
}

TEST_F(Embedding, UseAfterTheEndIsAnErrorThatSaysSo) {
    const TestKernel kernel(kernels::kPowerOff);
    Machine machine(kernel.config());
    machine.run();
    EXPECT_TRUE(mentions(error_of([&] { machine.run(); }), "runs once"));
    EXPECT_TRUE(mentions(error_of([&] { machine.pause(); }), "it has ended"));
    machine.resume();
    machine.request_stop();
    EXPECT_EQ(machine.statistics().state, RunState::kEnded);
    EXPECT_EQ(machine.report().exit, ExitReason::kPowerOff);
}

TEST_F(Embedding, ReportOfAnotherThreadsRunIsAnErrorUntilItHasEnded) {
    const TestKernel kernel(kernels::kSpin);
    Machine machine(kernel.config());
    testing::run_beside(machine, [&] {
        EXPECT_TRUE(testing::eventually([&] { return machine.statistics().state == RunState::kRunning; }));
        EXPECT_THROW(static_cast<void>(machine.report()), UsageError);
        EXPECT_THROW(static_cast<void>(machine.crash_description()), UsageError);
        machine.request_stop();
    });
    EXPECT_EQ(machine.report().exit, ExitReason::kStopped);
}

TEST_F(Embedding, StatisticsCountExitsWhileTheGuestRuns) {
    const TestKernel kernel(kReadPortForEver);
    Config config = kernel.config();
    config.devices.push_back(port_device([](auto, auto) {}));
    Machine machine(config);
    testing::run_beside(machine, [&] {
        EXPECT_TRUE(testing::eventually([&] { return machine.statistics().vcpus.at(0).exits > 100; }));
        machine.request_stop();
    });
}

TEST_F(Embedding, GuestMemoryIsSeen) {
    const TestKernel kernel(kernels::kPowerOff);
    const Machine machine(kernel.config());
    const auto code = machine.memory().load<std::uint32_t>(GuestAddress{0x100000});
    EXPECT_EQ(code, std::optional<std::uint32_t>(0x0600ba66)); // the first bytes of kPowerOff
    EXPECT_EQ(machine.memory().load<std::uint32_t>(GuestAddress{1 * kGiB}), std::nullopt);
}

TEST_F(Embedding, DevicesThatCannotBeWhereTheyShouldAreRefused) {
    const TestKernel kernel(kernels::kPowerOff);
    struct Case {
        const char* mention;
        std::function<void(DeviceConfig&)> spoil;
    };
    const std::vector<Case> cases{
        {"size is 0", [](DeviceConfig& device) { device.size = 0; }},
        {"needs a name", [](DeviceConfig& device) { device.name.clear(); }},
        {"`make`", [](DeviceConfig& device) { device.make = nullptr; }},
        {"made none", [](DeviceConfig& device) { device.make = [](const DeviceHost&) { return nullptr; }; }},
        {"0x0-0xffff", [](DeviceConfig& device) { device.base = 0xfffe; }},
        {"KVM answers", [](DeviceConfig& device) { device.base = 0x42; }},
        {"serial", [](DeviceConfig& device) { device.base = 0x3fc; }},
        {"0xc0000000-0xffffffff",
         [](DeviceConfig& device) {
             device.space = DeviceSpace::kMmio;
             device.base = 0x1000;
         }},
        {"the machine needs",
         [](DeviceConfig& device) {
             device.space = DeviceSpace::kMmio;
             device.base = 0xfee00ffc;
         }},
        {"not one of those that are free", [](DeviceConfig& device) { device.interrupt = 4; }},
    };
    for (const Case& bad : cases) {
        Config config = kernel.config();
        config.devices.push_back(port_device([](auto, auto) {}));
        bad.spoil(config.devices.front());
        const std::string error = error_of([&] { return std::make_unique<Machine>(config); });
        EXPECT_TRUE(mentions(error, bad.mention)) << bad.mention << ": " << error;
    }
}

TEST_F(Embedding, EightMachinesRunAtOnce) {
    const TestKernel kernel(kernels::kPowerOff);
    std::vector<std::jthread> threads;
    std::atomic<int> ended{0};
    for (int i = 0; i < 8; ++i) {
        threads.emplace_back([&] {
            Config config = kernel.config();
            config.prefault = {.scope = prefault::Scope::kAll, .workers = 1};
            Machine machine(config);
            machine.prefault();
            std::jthread observer([&] { static_cast<void>(machine.statistics()); });
            ended += machine.run() == ExitReason::kPowerOff ? 1 : 0;
        });
    }
    threads.clear();
    EXPECT_EQ(ended, 8);
}

std::size_t count_mappings() {
    std::ifstream maps("/proc/self/maps");
    return static_cast<std::size_t>(std::count(std::istreambuf_iterator<char>(maps), {}, '\n'));
}

/// Without the memory that the C library keeps after it was freed.
std::uint64_t resident_kib() {
    ::malloc_trim(0);
    std::ifstream statm("/proc/self/statm");
    std::uint64_t all = 0;
    std::uint64_t resident = 0;
    statm >> all >> resident;
    return resident * 4;
}

int number_from_environment(const char* name, int standard) {
    const char* const text = std::getenv(name);
    return text != nullptr ? std::atoi(text) : standard;
}

TEST_F(Embedding, MachinesStartAndStopManyTimesWithoutATrace) {
    const int rounds = number_from_environment("VMM_ROUNDS", 2);
    const int at_once = number_from_environment("VMM_AT_ONCE", 5);
    const TestKernel kernel(kernels::kPowerOff);
    const auto round = [&] {
        std::vector<std::unique_ptr<Machine>> machines;
        for (int i = 0; i < at_once; ++i) {
            machines.push_back(std::make_unique<Machine>(kernel.config()));
        }
        for (const auto& machine : machines) {
            ASSERT_EQ(machine->run(), ExitReason::kPowerOff);
        }
    };
    round(); // From now on the memory that the C library keeps does not change.
    round();
    const std::size_t descriptors = testing::count_descriptors();
    const std::size_t threads = testing::count_threads();
    const std::size_t mappings = count_mappings();
    const std::uint64_t resident = resident_kib();
    for (int i = 0; i < rounds; ++i) {
        round();
    }
    std::cout << rounds * at_once << " machines: descriptors " << descriptors << " -> " << testing::count_descriptors()
              << ", threads " << threads << " -> " << testing::count_threads() << ", mappings " << mappings << " -> "
              << count_mappings() << ", resident KiB " << resident << " -> " << resident_kib() << std::endl;
    EXPECT_EQ(testing::count_descriptors(), descriptors);
    EXPECT_EQ(testing::count_threads(), threads);
#ifndef VMM_SANITIZED // The runtime of a sanitizer keeps memory.
    EXPECT_LE(count_mappings(), mappings + 2);
    EXPECT_LE(resident_kib(), resident + 1024);
#endif
}

TEST_F(Embedding, CFunctionsAnswerWithACodeAndAMessage) {
    vmm_config* config = nullptr;
    vmm_machine* machine = nullptr;
    ASSERT_EQ(vmm_config_new(&config), 0);
    EXPECT_EQ(vmm_config_set_vcpus(nullptr, 1), -EINVAL);
    EXPECT_EQ(vmm_config_set_memory(config, 1, 7), -EINVAL);
    ASSERT_EQ(vmm_config_set_memory(config, 16, VMM_PAGE_4K), 0);
    EXPECT_EQ(vmm_machine_new(config, &machine), -EINVAL);
    EXPECT_TRUE(mentions(vmm_last_error(), "at least 2 MiB")) << vmm_last_error();
    ASSERT_EQ(vmm_config_set_memory(config, 16 * kMiB, VMM_PAGE_4K), 0);
    ASSERT_EQ(vmm_config_set_kernel(config, "/no/such/kernel"), 0);
    EXPECT_EQ(vmm_machine_new(config, &machine), -EIO);
    const testing::TemporaryDirectory directory;
    const std::string path = directory.write("kernel", testing::kernel_image(kReadPortForEver));
    ASSERT_EQ(vmm_config_set_kernel(config, path.c_str()), 0);
    EXPECT_EQ(vmm_config_set_memory_from(config, std::string(200, 'x').c_str(), 0), -EINVAL);
    ASSERT_EQ(vmm_config_set_memory_from(config, "/no/such/pool", 0), 0);
    EXPECT_EQ(vmm_machine_new(config, &machine), -EIO);
    EXPECT_TRUE(mentions(vmm_last_error(), "there is none")) << vmm_last_error();
    ASSERT_EQ(vmm_config_set_memory_from(config, nullptr, 0), 0);
    ASSERT_EQ(vmm_config_add_device(
                  config, "mine", VMM_SPACE_PORT_IO, kPort, 4, -1,
                  [](std::uint64_t, std::uint8_t*, std::size_t, void*) { return 7; },
                  [](std::uint64_t, const std::uint8_t*, std::size_t, void*) { return 0; }, nullptr),
              0);
    ASSERT_EQ(vmm_machine_new(config, &machine), 0) << vmm_last_error();
    EXPECT_EQ(vmm_machine_run(machine, nullptr), -EIO);
    EXPECT_TRUE(mentions(vmm_last_error(), "'mine' failed to read: its callback returned 7")) << vmm_last_error();
    EXPECT_EQ(vmm_machine_run(machine, nullptr), -EBUSY);
    EXPECT_EQ(vmm_machine_pause(machine), -EBUSY);
    EXPECT_EQ(vmm_machine_pause_within(machine, 1), -EBUSY);
    EXPECT_EQ(vmm_machine_read_memory(machine, kGiB, &config, 1), -EINVAL);
    vmm_machine_free(machine);
    vmm_config_free(config);
}

} // namespace
} // namespace vmm
