// A device that has work in flight when its driver resets it. The driver frees its memory nevertheless, so the guest
// must not go on.

#include <gtest/gtest.h>

#include <sys/epoll.h>

#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "devices/bus.hpp"
#include "devices/virtio/device.hpp"
#include "kvm/host/event_fd.hpp"
#include "kvm/host/guest_memory.hpp"
#include "kvm/system.hpp"
#include "kvm/vm.hpp"
#include "support/devices_virtio_driver.hpp"
#include "support/host_errors.hpp"
#include "support/kvm_command.hpp"
#include "support/kvm_require.hpp"
#include "vmm/machine/memory_map.hpp"
#include "vmm/machine/virtio_devices.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {
namespace {

namespace reg = devices::testing::reg;
using devices::virtio::Device;

/// A device that, from a stop on, is busy with the host until the test says otherwise.
class BusyDevice final : public Device {
  public:
    BusyDevice(std::atomic<bool>& busy, EventFd& done, std::atomic<bool>& active)
        : busy_(busy), done_(done), active_(active) {
        identity_.id = devices::virtio::DeviceId::kEntropy;
        identity_.name = "busy0";
        identity_.queue_sizes = {8};
    }
    [[nodiscard]] const devices::virtio::Identity& identity() const noexcept override { return identity_; }
    void activate(devices::virtio::Activation, devices::virtio::DriverLink&) override { active_ = true; }
    void doorbell(std::uint16_t) override {}
    [[nodiscard]] std::vector<devices::virtio::Source> sources() const override { return {{done_.fd(), EPOLLIN, 0}}; }
    void ready(int, std::uint32_t) override { done_.clear(); }
    void stop() override {}
    [[nodiscard]] bool is_idle() const noexcept override { return !busy_; }
    void stop_queue(std::uint16_t) override {}
    [[nodiscard]] bool is_queue_idle(std::uint16_t) const noexcept override { return !busy_; }
    void restart_queue(std::uint16_t, devices::virtio::Queue) override {}

  private:
    devices::virtio::Identity identity_;
    std::atomic<bool>& busy_;
    EventFd& done_;
    std::atomic<bool>& active_;
};

class ResetPatience : public testing::KvmTest {
  protected:
    void SetUp() override {
        KvmTest::SetUp();
        if (IsSkipped() || HasFatalFailure()) {
            return;
        }
        system.emplace();
        vm.emplace(*system);
        vm->create_irqchip();
        std::vector<std::unique_ptr<Device>> owned;
        owned.push_back(std::make_unique<BusyDevice>(busy, done, active));
        devices.emplace(*vm, memory, std::move(owned), nullptr, prefault::CpuList{});
        devices->attach_to(mmio);
        mmio.freeze();
        devices->start(stop, no_sandbox);
        add_status(1);
        add_status(3);
        write(reg::kDriverFeaturesSel, 1);
        write(reg::kDriverFeatures, 1);
        add_status(11);
        add_status(15);
        ASSERT_TRUE(testing::eventually([this] { return active.load(); }));
    }
    void write(std::uint64_t offset, std::uint32_t value) {
        mmio.write(to_integer(memory_map::kVirtioWindow.base) + offset, std::as_bytes(std::span(&value, 1)));
    }
    void add_status(std::uint32_t bits) { write(reg::kStatus, bits); }
    [[nodiscard]] std::uint32_t status() {
        std::uint32_t value = 0;
        mmio.read(to_integer(memory_map::kVirtioWindow.base) + reg::kStatus,
                  std::as_writable_bytes(std::span(&value, 1)));
        return value;
    }
    void finish() {
        busy = false;
        done.signal();
    }

    std::atomic<bool> busy{true};
    std::atomic<bool> active{false};
    EventFd done;
    GuestMemory memory{std::array{GuestRange{GuestAddress{0}, 2 * kMiB}}, PageSize::k4K};
    std::optional<kvm::System> system;
    std::optional<kvm::Vm> vm;
    StopRequest stop;
    const Sandbox no_sandbox{SandboxMode::kOff};
    devices::Bus mmio{devices::AddressSpace::kMmio};
    std::optional<VirtioDevices> devices;
};

TEST_F(ResetPatience, ThatRunsOutFailsTheMachineAndNamesTheDevice) {
    ASSERT_EQ(status(), 15U);
    write(reg::kStatus, 0); // It returns when the patience is over.
    EXPECT_TRUE(stop.is_requested());
    finish();
    const std::string error = testing::error_of([&] {
        devices->join();
        return 0;
    });
    EXPECT_TRUE(testing::mentions(error, "cannot reset the guest's device busy0")) << error;
}

TEST_F(ResetPatience, ThatIsNotNeededLetsTheMachineRun) {
    ASSERT_EQ(status(), 15U);
    finish();
    write(reg::kStatus, 0);
    EXPECT_EQ(status(), 0U);
    EXPECT_FALSE(stop.is_requested());
    EXPECT_NO_THROW(devices->join());
}

TEST_F(ResetPatience, OfAMachineThatIsStoppedIsOverAtOnceAndNoFailure) {
    ASSERT_EQ(status(), 15U);
    stop.request(ExitReason::kStopped);
    write(reg::kStatus, 0);
    finish();
    EXPECT_NO_THROW(devices->join());
}

} // namespace
} // namespace vmm
