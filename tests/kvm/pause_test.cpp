// A pause holds vCPUs and devices. It waits for work that the host still does for a device, but no longer than
// requested.

#include <gtest/gtest.h>

#include <sys/syscall.h>

#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "devices/bus.hpp"
#include "devices/frame_stream.hpp"
#include "devices/virtio/balloon.hpp"
#include "devices/virtio/block.hpp"
#include "devices/virtio/console.hpp"
#include "devices/virtio/net.hpp"
#include "devices/virtio/rng.hpp"
#include "devices/virtio/vsock.hpp"
#include "kvm/host/guest_memory.hpp"
#include "kvm/system.hpp"
#include "kvm/vm.hpp"
#include "support/devices_held_disk_io.hpp"
#include "support/devices_virtio_driver.hpp"
#include "support/host_errors.hpp"
#include "support/host_pipe.hpp"
#include "support/host_syscall_injector.hpp"
#include "support/host_temporary_directory.hpp"
#include "support/host_waiting.hpp"
#include "support/kvm_command.hpp"
#include "support/kvm_machine.hpp"
#include "support/kvm_require.hpp"
#include "vmm/machine.hpp"
#include "vmm/machine/machine_pause.hpp"
#include "vmm/machine/memory_map.hpp"
#include "vmm/machine/virtio_devices.hpp"

namespace vmm {
namespace {

using namespace std::chrono_literals;
using devices::DiskIo;
using devices::testing::DriverQueue;
using devices::testing::HeldDiskIo;
using devices::testing::RegisterDriver;
using devices::virtio::Device;
using testing::error_of;
using testing::eventually;
using testing::mentions;

/// Longer than any test runs.
constexpr std::chrono::hours kLong{1};

/// A disk's I/O that the test and the device's thread share.
class SharedDiskIo final : public DiskIo {
  public:
    [[nodiscard]] std::size_t held() const {
        const std::lock_guard hold(lock_);
        return io_.held().size();
    }
    void release_all() {
        const std::lock_guard hold(lock_);
        io_.release_all();
    }

    [[nodiscard]] devices::DiskIoKind kind() const noexcept override { return io_.kind(); }
    [[nodiscard]] bool register_buffers(std::span<const std::span<std::byte>> buffers) override {
        return io_.register_buffers(buffers);
    }
    [[nodiscard]] int fd() const noexcept override { return io_.fd(); }
    [[nodiscard]] bool has_room() const noexcept override { return true; }
    void read(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces) override {
        const std::lock_guard hold(lock_);
        io_.read(token, offset, pieces);
    }
    void write(std::uint64_t token, std::uint64_t offset, std::span<const iovec> pieces) override {
        const std::lock_guard hold(lock_);
        io_.write(token, offset, pieces);
    }
    void flush(std::uint64_t token) override {
        const std::lock_guard hold(lock_);
        io_.flush(token);
    }
    void allocate(std::uint64_t token, int mode, std::uint64_t offset, std::uint64_t bytes) override {
        const std::lock_guard hold(lock_);
        io_.allocate(token, mode, offset, bytes);
    }
    [[nodiscard]] bool submit() override { return true; }
    [[nodiscard]] std::size_t reap(std::span<Completion> completions) override {
        const std::lock_guard hold(lock_);
        return io_.reap(completions);
    }
    void abandon() override {}

  private:
    mutable std::mutex lock_;
    HeldDiskIo io_;
};

/// The registers of one device, by the bus.
class OnBus final : public devices::Device {
  public:
    OnBus(devices::Bus& bus, std::uint64_t base) : bus_(bus), base_(base) {}
    [[nodiscard]] std::string_view name() const noexcept override { return "driver"; }
    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override { bus_.read(base_ + offset, data); }
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override {
        bus_.write(base_ + offset, data);
    }

  private:
    devices::Bus& bus_;
    std::uint64_t base_;
};

/// One device of each kind with its thread, and a driver that has enabled all queues. There are no vCPUs, because
/// the test does what a guest does.
class Pause : public testing::KvmTest {
  protected:
    enum Which : std::size_t { kBlock, kNet, kVsock, kBalloon, kRng, kConsole, kHowMany };

    void SetUp() override {
        KvmTest::SetUp();
        if (IsSkipped() || HasFatalFailure()) {
            return;
        }
        system.emplace();
        vm.emplace(*system);
        vm->create_irqchip();
        devices.emplace(*vm, memory, make(), nullptr, prefault::CpuList{});
        devices->attach_to(mmio);
        mmio.freeze();
        pause.emplace(*devices, stop);
    }
    void TearDown() override {
        if (pause) {
            disk->release_all();
            pause->close();
            devices->abandon();
            EXPECT_FALSE(devices->has_left_work());
        }
    }

    std::vector<std::unique_ptr<Device>> make() {
        std::vector<std::unique_ptr<Device>> owned;
        auto io = std::make_unique<SharedDiskIo>();
        disk = io.get();
        owned.push_back(
            std::make_unique<devices::virtio::Block>("blk0", devices::DiskImage(directory / "disk", {.lock = false}),
                                                     std::move(io), devices::virtio::BlockConfig{}));
        owned.push_back(std::make_unique<devices::virtio::Net>(
            "net0", std::make_unique<devices::FrameStream>(std::move(network.theirs)), devices::make_mac_address("n")));
        owned.push_back(std::make_unique<devices::virtio::Vsock>(
            "vsock0", devices::virtio::VsockConfig{.guest_cid = 3, .path = directory / "vsock"}));
        owned.push_back(std::make_unique<devices::virtio::Balloon>("balloon0", 0, false));
        owned.push_back(std::make_unique<devices::virtio::Rng>("rng0"));
        owned.push_back(
            std::make_unique<devices::virtio::Console>("con0", devices::CharacterPort::Callbacks{}, std::nullopt));
        for (const auto& device : owned) {
            queue_sizes.push_back(device->identity().queue_sizes);
        }
        return owned;
    }
    /// Starts the threads, and a driver for each device.
    void start() {
        pause->start_devices(stop, no_sandbox);
        pause->let_devices_begin();
        pause->open(0, [] {});
        std::uint64_t free = 0x10000;
        for (std::size_t i = 0; i < kHowMany; ++i) {
            OnBus& registers = on_bus.emplace_back(mmio, to_integer(memory_map::kVirtioWindow.base) + i * 0x1000);
            RegisterDriver& driver = drivers.emplace_back(registers);
            ASSERT_TRUE(driver.negotiate(devices::virtio::kFeatureVersion1));
            for (std::size_t queue = 0; queue < queue_sizes[i].size(); ++queue) {
                queues[i].emplace_back(memory, GuestAddress{free}, kQueueSize, false);
                ASSERT_TRUE(driver.enable_queue(static_cast<std::uint32_t>(queue), queues[i][queue].geometry()));
                free += 0x1000;
            }
            driver.add_status(devices::virtio::kStatusDriverOk);
        }
    }
    /// Asks for random bytes; see has_answered().
    void ask_for_entropy() {
        queues[kRng][0].add({{kRandom, 64, true}});
        drivers[kRng].ring(0);
    }
    [[nodiscard]] bool has_answered(Which device) { return queues[device][0].take_used().has_value(); }
    /// Reads the first sector of the disk.
    void read_disk() {
        ASSERT_TRUE(memory.store(kHeader, std::array<std::uint64_t, 2>{}));
        queues[kBlock][0].add({{kHeader, 16}, {kData, 512, true}, {kDiskStatus, 1, true}});
        drivers[kBlock].ring(0);
    }
    [[nodiscard]] std::string error_of_pause(std::chrono::milliseconds within) {
        return error_of([&] {
            pause->pause(within);
            return 0;
        });
    }

    static constexpr std::uint16_t kQueueSize = 8;
    static constexpr GuestAddress kRandom{0x1000};
    static constexpr GuestAddress kHeader{0x2000};
    static constexpr GuestAddress kData{0x3000};
    static constexpr GuestAddress kDiskStatus{0x4000};

    testing::TemporaryDirectory directory;
    std::string image = directory.write("disk", std::string(64 * 512, 'x'));
    testing::SocketPair network;
    SharedDiskIo* disk = nullptr; ///< the block device's
    GuestMemory memory{std::array{GuestRange{GuestAddress{0}, 2 * kMiB}}, PageSize::k4K};
    std::optional<kvm::System> system;
    std::optional<kvm::Vm> vm;
    StopRequest stop;
    const Sandbox no_sandbox{SandboxMode::kOff};
    devices::Bus mmio{devices::AddressSpace::kMmio};
    std::vector<std::vector<std::uint16_t>> queue_sizes; ///< by device
    std::optional<VirtioDevices> devices;
    std::optional<MachinePause> pause;
    std::deque<OnBus> on_bus;
    std::deque<RegisterDriver> drivers;
    std::array<std::vector<DriverQueue>, kHowMany> queues;
};

TEST_F(Pause, OfDevicesOfAllKindsEndsAndTheyGoOnWithWhatCameMeanwhile) {
    start();
    for (int round = 0; round < 3; ++round) {
        ask_for_entropy();
        EXPECT_TRUE(eventually([&] { return has_answered(kRng); }));
        pause->pause(kLong);
        EXPECT_TRUE(pause->is_paused());
        EXPECT_EQ(devices->wait_until_paused(std::chrono::steady_clock::now()), std::vector<std::string>{});
        ask_for_entropy();
        read_disk();
        std::this_thread::sleep_for(5ms);
        EXPECT_FALSE(has_answered(kRng));
        EXPECT_EQ(disk->held(), 0U);
        pause->resume();
        EXPECT_FALSE(pause->is_paused());
        EXPECT_TRUE(eventually([&] { return has_answered(kRng); }));
        EXPECT_TRUE(eventually([&] { return disk->held() == 1; }));
        disk->release_all();
        EXPECT_TRUE(eventually([&] { return has_answered(kBlock); }));
    }
}

TEST_F(Pause, DeviceWhoseWorkDoesNotEndKeepsNothingOfTheOthers) {
    start();
    read_disk();
    ASSERT_TRUE(eventually([&] { return disk->held() == 1; }));
    pause->close();
    pause.reset();
    devices->abandon();
    ASSERT_TRUE(devices->has_left_work());
    EXPECT_TRUE(std::filesystem::exists(directory / "vsock"));
    devices->destroy_idle();
    EXPECT_FALSE(std::filesystem::exists(directory / "vsock"));
    disk->release_all(); // so that its thread ends
}

TEST_F(Pause, HoldsWhatTheDriverAndTheHostGiveToEachKindOfDevice) {
    start();
    struct Asked {
        Which device;
        std::uint16_t queue;
        devices::testing::Buffer buffer;
    };
    const auto free = [](std::uint64_t page) { return GuestAddress{0x100000 + page * 0x1000}; };
    // A buffer and a frame for the network, data from a guest's socket, a page for the balloon, and characters.
    const std::vector<Asked> all{{kNet, 0, {free(0), 2048, true}},   {kNet, 1, {free(1), 12 + 60, false}},
                                 {kVsock, 1, {free(2), 44, false}},  {kBalloon, 0, {free(3), 4, false}},
                                 {kConsole, 1, {free(4), 4, false}}, {kRng, 0, {free(5), 64, true}}};
    ASSERT_TRUE(memory.store(free(3), std::uint32_t{0x180}));
    const std::string frame = std::string("\0\0\0\x3c", 4) + std::string(60, '\xff');
    for (int round = 0; round < 3; ++round) {
        pause->pause(kLong);
        testing::write_text(network.ours.get(), frame);
        for (const Asked& asked : all) {
            queues[asked.device][asked.queue].add({asked.buffer});
            drivers[asked.device].ring(asked.queue);
        }
        std::this_thread::sleep_for(5ms);
        for (const Asked& asked : all) {
            EXPECT_FALSE(queues[asked.device][asked.queue].take_used()) << asked.device;
        }
        pause->resume();
        for (const Asked& asked : all) {
            EXPECT_TRUE(eventually([&] { return queues[asked.device][asked.queue].take_used().has_value(); }))
                << asked.device << " queue " << asked.queue;
        }
    }
    for (std::size_t device = 0; device < kHowMany; ++device) {
        EXPECT_EQ(drivers[device].status(), 15U) << device;
    }
}

TEST_F(Pause, ThatFindsADeviceBusyFailsByNameAndTheOthersGoOn) {
    start();
    read_disk();
    EXPECT_TRUE(eventually([&] { return disk->held() == 1; }));
    const std::string error = error_of_pause(20ms);
    EXPECT_TRUE(mentions(error, "cannot pause the machine within 0.02 s")) << error;
    EXPECT_TRUE(mentions(error, "does for blk0 (")) << error;
    EXPECT_THROW(pause->pause(1ms), PauseError);
    EXPECT_FALSE(pause->is_paused());
    EXPECT_FALSE(pause->gate().is_shut());
    ask_for_entropy();
    EXPECT_TRUE(eventually([&] { return has_answered(kRng); }));
    disk->release_all();
    EXPECT_TRUE(eventually([&] { return has_answered(kBlock); }));
    pause->pause(kLong);
    EXPECT_TRUE(pause->is_paused());
}

TEST_F(Pause, WaitsForWhatTheHostHas) {
    start();
    read_disk();
    EXPECT_TRUE(eventually([&] { return disk->held() == 1; }));
    std::jthread pausing([&] { pause->pause(kLong); });
    EXPECT_TRUE(eventually([&] { return pause->gate().is_shut(); }));
    EXPECT_FALSE(pause->is_paused());
    std::jthread another([&] { pause->pause(kLong); }); // It waits for the first pause.
    disk->release_all();
    pausing.join();
    another.join();
    EXPECT_TRUE(pause->is_paused());
    EXPECT_TRUE(has_answered(kBlock)) << "it is paused before the driver has what the host has done";
}

TEST_F(Pause, ThatIsUnderWayIsEndedByAResume) {
    start();
    read_disk();
    EXPECT_TRUE(eventually([&] { return disk->held() == 1; }));
    for (int round = 0; round < 20; ++round) {
        std::atomic<bool> returned{false};
        std::jthread pausing([&] {
            pause->pause(kLong);
            returned = true;
        });
        // A resume that comes before the pause does not end it.
        EXPECT_TRUE(eventually([&] {
            pause->resume();
            return returned.load();
        }));
        EXPECT_FALSE(pause->is_paused());
        EXPECT_FALSE(pause->gate().is_shut());
    }
    ask_for_entropy();
    EXPECT_TRUE(eventually([&] { return has_answered(kRng); }));
}

TEST_F(Pause, ThatIsUnderWayIsEndedByAStop) {
    start();
    read_disk();
    EXPECT_TRUE(eventually([&] { return disk->held() == 1; }));
    std::jthread pausing([&] { pause->pause(kLong); });
    EXPECT_TRUE(eventually([&] { return pause->gate().is_shut(); }));
    stop.request(ExitReason::kStopped);
    pause->close();
    pausing.join();
    EXPECT_FALSE(pause->is_paused());
    EXPECT_TRUE(mentions(error_of_pause(kLong), "it has ended"));
}

TEST_F(Pause, OfAPausedMachineThatEndsIsNoObstacle) {
    start();
    pause->pause(kLong);
    stop.request(ExitReason::kStopped);
    pause->close();
    devices->join();
}

TEST_F(Pause, BeforeTheThreadsExistLeavesTheDevicesToBeginPaused) {
    pause->pause(kLong);
    EXPECT_TRUE(pause->is_paused());
    start();
    EXPECT_EQ(devices->wait_until_paused(std::chrono::steady_clock::now() + kLong), std::vector<std::string>{});
    ask_for_entropy();
    std::this_thread::sleep_for(5ms);
    EXPECT_FALSE(has_answered(kRng));
    pause->resume();
    EXPECT_TRUE(eventually([&] { return has_answered(kRng); }));
}

TEST_F(Pause, IsRightWhoeverCallsIt) {
    start();
    std::atomic<int> done{0};
    {
        std::vector<std::jthread> callers;
        for (int caller = 0; caller < 4; ++caller) {
            callers.emplace_back([&, caller] {
                for (int round = 0; round < 50; ++round) {
                    if (caller % 2 == 0) {
                        pause->pause(kLong);
                    } else {
                        pause->resume();
                    }
                }
                ++done;
            });
        }
    }
    EXPECT_EQ(done, 4);
    pause->resume();
    ask_for_entropy();
    EXPECT_TRUE(eventually([&] { return has_answered(kRng); }));
}

using MachinePauseTest = testing::KvmTest;

TEST_F(MachinePauseTest, LeavesNoAccessUnfinishedAndTheGuestGoesOn) {
    const testing::TestKernel kernel(testing::kernels::kFloodSerial);
    Config config = kernel.config();
    std::atomic<std::uint64_t> heard{0};
    config.serial.sink = [&](std::span<const std::byte> bytes) { heard += bytes.size(); };
    config.rng = true;
    Machine machine(config);
    testing::run_beside(machine, [&] {
        for (int round = 0; round < 20; ++round) {
            const std::uint64_t before = heard;
            EXPECT_TRUE(eventually([&] { return heard > before; }));
            machine.pause();
            EXPECT_EQ(machine.statistics().state, RunState::kPaused);
            machine.resume();
        }
        machine.pause();
        machine.request_stop();
    });
}

/// The disk's flush does not complete until the test says so.
TEST_F(MachinePauseTest, OfAMachineWhoseDiskHangsFailsByNameAndTheGuestGoesOn) {
    if (const std::string reason = testing::SyscallInjector::why_not(); !reason.empty()) {
        GTEST_SKIP() << reason;
    }
    const std::string kernel =
        std::filesystem::exists(DISK_WRITER_KERNEL) ? DISK_WRITER_KERNEL : "/bin/disk_writer.elf";
    const testing::TemporaryDirectory directory;
    const std::string disk = directory.write("disk", "");
    const std::string socket = directory / "api";
    std::filesystem::resize_file(disk, 4 * kMiB);
    std::atomic<bool> hangs{false};
    std::atomic<bool> released{false};
    testing::CommandResult failed;
    testing::CommandResult status;
    testing::CommandResult paused;
    std::jthread beside([&] {
        EXPECT_TRUE(eventually([&] { return hangs.load(); }));
        failed = testing::run_command({"ctl", socket, "pause", "--within", "1"});
        status = testing::run_command({"ctl", socket, "status"});
        released = true;
        paused = testing::run_command({"ctl", socket, "pause", "--within", "3000"});
        testing::run_command({"ctl", socket, "stop", "--force"});
    });
    const testing::SyscallInjector injector({SYS_fdatasync});
    const auto run =
        injector.run({testing::command_under_test(), "run", kernel, "--transport", "mmio", "-m", "64M", "--disk",
                      disk + ",io=threads", "--cmdline", "first=1", "--serial", "none", "--api", socket},
                     [&](const testing::SystemCall&) {
                         hangs = true;
                         EXPECT_TRUE(eventually([&] { return released.load(); }));
                         return 0;
                     });
    released = true;
    beside.join();
    EXPECT_EQ(run.exit_status, 0) << run.errors << run.stuck;
    EXPECT_EQ(failed.exit_status, 1) << failed.output;
    EXPECT_TRUE(mentions(failed.errors, "does for blk0")) << failed.errors;
    EXPECT_TRUE(mentions(status.output, "state: running\n")) << status.output;
    EXPECT_EQ(paused.exit_status, 0) << paused.errors;
    EXPECT_EQ(paused.output, "state: paused\n");
}

} // namespace
} // namespace vmm
