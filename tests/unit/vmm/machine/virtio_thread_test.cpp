// The thread of a virtio device, with a device that only opens and closes.
#include "vmm/machine/virtio_thread.hpp"

#include <gtest/gtest.h>

#include <fcntl.h>

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <future>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "devices/virtio/device.hpp"
#include "devices/virtio/mmio_transport.hpp"
#include "kvm/host/event_fd.hpp"
#include "kvm/host/guest_memory.hpp"
#include "kvm/host/unique_fd.hpp"
#include "support/devices_recording_irq.hpp"
#include "support/devices_virtio_driver.hpp"
#include "support/host_waiting.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {
namespace {

using devices::virtio::Source;

UniqueFd make_event() {
    return UniqueFd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
}
/// Closes its descriptor when it is ready, and opens another one, as the socket of a new connection follows the socket
/// of the last one.
class Reopening final : public devices::virtio::Device {
  public:
    Reopening() {
        identity_.id = devices::virtio::DeviceId::kEntropy;
        identity_.name = "reopening0";
        identity_.queue_sizes = {1};
        share();
    }
    [[nodiscard]] const devices::virtio::Identity& identity() const noexcept override { return identity_; }
    void activate(devices::virtio::Activation, devices::virtio::DriverLink&) override {}
    void doorbell(std::uint16_t) override {}
    [[nodiscard]] std::vector<Source> sources() const override { return {{event_.get(), EPOLLIN, serial_}}; }
    void ready(int, std::uint32_t) override {
        std::uint64_t count = 0; // taken: the copy keeps the event alive, and ready
        EXPECT_EQ(::read(event_.get(), &count, sizeof(count)), static_cast<ssize_t>(sizeof(count)));
        event_.reset();
        event_ = make_event();
        share();
        ++serial_;
        same_number_ = event_.get() == number_;
        ++times_;
    }
    void stop() override {}
    [[nodiscard]] bool is_idle() const noexcept override { return true; }
    void stop_queue(std::uint16_t) override {}
    [[nodiscard]] bool is_queue_idle(std::uint16_t) const noexcept override { return true; }
    void restart_queue(std::uint16_t, devices::virtio::Queue) override {}

    /// Makes the present descriptor ready, by another descriptor for the same event, because its own may be closed
    /// meanwhile.
    void signal() const {
        const std::uint64_t one = 1;
        ASSERT_EQ(::write(shared_, &one, sizeof(one)), static_cast<ssize_t>(sizeof(one)));
    }
    [[nodiscard]] bool has_same_number() const { return same_number_; }
    [[nodiscard]] bool waits_for(int times) const {
        return vmm::testing::eventually([&] { return times_ >= times; }) && times_ == times;
    }

  private:
    void share() {
        copies_.emplace_back(::fcntl(event_.get(), F_DUPFD_CLOEXEC, 0));
        shared_ = copies_.back().get();
    }

    devices::virtio::Identity identity_;
    UniqueFd event_ = make_event();
    int number_ = event_.get();
    std::deque<UniqueFd> copies_; ///< one for each event so far
    std::atomic<int> shared_ = -1;
    std::uint64_t serial_ = 0;
    std::atomic<bool> same_number_ = false;
    std::atomic<int> times_ = 0;
};

/// Has work with the host that ends when the test says so.
class Busy final : public devices::virtio::Device {
  public:
    Busy() {
        identity_.id = devices::virtio::DeviceId::kEntropy;
        identity_.name = "busy0";
        identity_.queue_sizes = {1};
    }
    [[nodiscard]] const devices::virtio::Identity& identity() const noexcept override { return identity_; }
    void activate(devices::virtio::Activation, devices::virtio::DriverLink&) override {
        cpus_ = prefault::usable_cpu_list();
        active_ = true;
    }
    void doorbell(std::uint16_t) override {}
    [[nodiscard]] std::vector<Source> sources() const override { return {{event_.get(), EPOLLIN}}; }
    void ready(int, std::uint32_t) override {
        std::uint64_t count = 0;
        EXPECT_EQ(::read(event_.get(), &count, sizeof(count)), static_cast<ssize_t>(sizeof(count)));
        idle_ = true;
    }
    void stop() override {
        stopped_ = true;
        paused_ = false;
    }
    [[nodiscard]] bool is_idle() const noexcept override { return idle_; }
    void pause() override { paused_ = true; }
    [[nodiscard]] bool is_paused() const noexcept override { return paused_ && idle_; }
    void resume() override { paused_ = false; }
    void stop_queue(std::uint16_t) override {}
    [[nodiscard]] bool is_queue_idle(std::uint16_t) const noexcept override { return true; }
    void restart_queue(std::uint16_t, devices::virtio::Queue) override {}

    void end_work() const {
        const std::uint64_t one = 1;
        ASSERT_EQ(::write(event_.get(), &one, sizeof(one)), static_cast<ssize_t>(sizeof(one)));
    }
    [[nodiscard]] bool is_active() const { return active_; }
    [[nodiscard]] bool is_stopped() const { return stopped_; }
    [[nodiscard]] bool is_told_to_pause() const { return paused_; }
    /// The thread of the device, when it is active.
    [[nodiscard]] const prefault::CpuList& cpus() const { return cpus_; }

  private:
    devices::virtio::Identity identity_;
    UniqueFd event_ = make_event();
    prefault::CpuList cpus_;
    std::atomic<bool> active_ = false;
    std::atomic<bool> stopped_ = false;
    std::atomic<bool> paused_ = false;
    std::atomic<bool> idle_ = false;
};

const Sandbox kNoSandbox(SandboxMode::kOff);

/// A device with its thread, and a driver that is ready when activate() returns.
class VirtioThreadTest : public ::testing::Test {
  protected:
    void begin(std::span<const unsigned> cpus = {}) {
        thread.emplace(VirtioThread::Wiring{.device = device,
                                            .negotiation = transport.negotiation(),
                                            .driver = transport,
                                            .doorbells = doorbells,
                                            .work = work,
                                            .stop = stop,
                                            .sandbox = kNoSandbox,
                                            .cpus = cpus});
    }
    void activate() {
        ASSERT_TRUE(driver.negotiate(driver.device_features()));
        driver.add_status(devices::virtio::kStatusDriverOk);
        ASSERT_TRUE(vmm::testing::eventually([this] { return device.is_active(); }));
    }

    const std::array<GuestRange, 1> layout{GuestRange{GuestAddress{0}, 2 * kMiB}};
    const GuestMemory memory{layout, PageSize::k4K};
    devices::testing::RecordingIrq irq;
    StopRequest stop;
    EventFd work;
    std::deque<EventFd> doorbells{1};
    Busy device;
    devices::virtio::MmioTransport transport{
        device.identity(),
        memory,
        irq,
        {.work = [this] { work.signal(); }, .doorbell = {}, .patience = vmm::testing::kPatience}};
    devices::testing::RegisterDriver driver{transport};
    std::optional<VirtioThread> thread;
};

// What broke: the end of a machine waited for a disk's work without a bound.
TEST_F(VirtioThreadTest, IsNotWaitedForLongerThanAskedAndGoesOnUntilItsDeviceIsIdle) {
    begin();
    activate();
    EXPECT_FALSE(thread->join_until(std::chrono::steady_clock::now()));
    EXPECT_TRUE(vmm::testing::eventually([this] { return device.is_stopped(); }));
    EXPECT_FALSE(thread->join_until(std::chrono::steady_clock::now()));
    device.end_work();
    EXPECT_TRUE(thread->join_until(std::chrono::steady_clock::now() + vmm::testing::kPatience));
    EXPECT_EQ(thread->failure(), nullptr);
}

TEST_F(VirtioThreadTest, RunsOnTheCpusThatItIsGiven) {
    const prefault::CpuList last{prefault::usable_cpu_list().back()};
    begin(last);
    device.end_work();
    activate();
    EXPECT_EQ(device.cpus(), last);
}

/// Its driver clears the right to master the bus.
class ReachOfVirtioThread : public VirtioThreadTest {
  protected:
    ReachOfVirtioThread() { begin(); }

    /// Acts as a vCPU that writes to the command register.
    void set_reach(bool reaches) {
        if (transport.negotiation().set_reach(reaches)) {
            transport.negotiation().follow_reach();
        }
    }
};

TEST_F(ReachOfVirtioThread, IsGoneWhenTheDeviceHasNoWorkWithTheHost) {
    activate();
    std::atomic<bool> is_written = false;
    std::thread vcpu([&] {
        set_reach(false);
        is_written = true;
    });
    EXPECT_TRUE(vmm::testing::eventually([this] { return device.is_told_to_pause(); }));
    EXPECT_FALSE(is_written);
    device.end_work();
    vcpu.join();
    EXPECT_TRUE(device.is_paused());
    set_reach(true);
    EXPECT_TRUE(vmm::testing::eventually([this] { return !device.is_told_to_pause(); }));
}

TEST_F(ReachOfVirtioThread, OfOneThatMayNotActivatesNothing) {
    device.end_work();
    set_reach(false);
    ASSERT_TRUE(driver.negotiate(driver.device_features()));
    driver.add_status(devices::virtio::kStatusDriverOk);
    EXPECT_TRUE(vmm::testing::eventually([this] { return device.is_told_to_pause(); }));
    EXPECT_FALSE(device.is_active());
    set_reach(true);
    EXPECT_TRUE(vmm::testing::eventually([this] { return device.is_active(); }));
    EXPECT_FALSE(device.is_told_to_pause());
}

TEST_F(ReachOfVirtioThread, AResetIsServedWithoutIt) {
    activate();
    device.end_work();
    set_reach(false);
    driver.write(devices::testing::reg::kStatus, 0);
    EXPECT_EQ(driver.status(), 0U);
    EXPECT_TRUE(device.is_stopped());
    driver.add_status(devices::virtio::kStatusAcknowledge);
    set_reach(true);
    EXPECT_TRUE(vmm::testing::eventually([this] { return !device.is_told_to_pause(); }));
}

TEST_F(ReachOfVirtioThread, APauseOfTheMachineOutlastsIt) {
    activate();
    device.end_work();
    set_reach(false);
    thread->pause();
    const auto soon = std::chrono::steady_clock::now() + vmm::testing::kPatience;
    EXPECT_TRUE(thread->wait_until_paused(soon));
    thread->resume();
    EXPECT_TRUE(device.is_paused()) << "its driver does not let it go on";
    thread->pause();
    EXPECT_TRUE(thread->wait_until_paused(soon));
    thread->resume();
    set_reach(true);
    EXPECT_TRUE(vmm::testing::eventually([this] { return !device.is_told_to_pause(); }));
}

TEST(VirtioThread, WatchesADescriptorThatHasTheNumberOfOneThatWasClosed) {
    const std::array layout{GuestRange{GuestAddress{0}, 2 * kMiB}};
    const GuestMemory memory(layout, PageSize::k4K);
    devices::testing::RecordingIrq irq;
    StopRequest stop;
    EventFd work;
    std::deque<EventFd> doorbells(1);
    Reopening device;
    devices::virtio::MmioTransport transport(device.identity(), memory, irq, {});
    VirtioThread thread({device, transport.negotiation(), transport, doorbells, work, stop, kNoSandbox});
    device.signal();
    ASSERT_TRUE(device.waits_for(1));
    ASSERT_TRUE(device.has_same_number()) << "not what this test is about";
    device.signal();
    EXPECT_TRUE(device.waits_for(2)) << "the new descriptor is not watched";
    thread.join();
    EXPECT_EQ(thread.failure(), nullptr);
}

/// A device with more work than it can ever do, on many descriptors.
class Flooded final : public devices::virtio::Device {
  public:
    static constexpr std::size_t kDescriptors = 200;

    Flooded() {
        identity_.id = devices::virtio::DeviceId::kVsock;
        identity_.name = "flooded";
        identity_.queue_sizes = {8};
        for (std::size_t i = 0; i < kDescriptors; ++i) {
            events_.push_back(make_event());
            const std::uint64_t one = 1;
            EXPECT_EQ(::write(events_.back().get(), &one, sizeof(one)), static_cast<ssize_t>(sizeof(one)));
        }
    }

    [[nodiscard]] const devices::virtio::Identity& identity() const noexcept override { return identity_; }
    void activate(devices::virtio::Activation, devices::virtio::DriverLink&) override {}
    void doorbell(std::uint16_t) override {}
    [[nodiscard]] std::vector<devices::virtio::Source> sources() const override {
        std::vector<devices::virtio::Source> sources;
        for (const UniqueFd& event : events_) {
            sources.push_back({event.get(), EPOLLIN});
        }
        return sources;
    }
    void ready(int, std::uint32_t) override {
        if (++turns_ == kTurns && on_last_turn) {
            on_last_turn();
        }
    }
    void stop() override {}
    [[nodiscard]] bool is_idle() const noexcept override { return true; }
    void stop_queue(std::uint16_t) override {}
    [[nodiscard]] bool is_queue_idle(std::uint16_t) const noexcept override { return true; }
    void restart_queue(std::uint16_t, devices::virtio::Queue) override {}

    [[nodiscard]] int turns() const { return turns_; }
    static constexpr int kTurns = 1000;
    std::function<void()> on_last_turn; ///< called in it

  private:
    devices::virtio::Identity identity_;
    std::vector<UniqueFd> events_;
    std::atomic<int> turns_ = 0;
};

TEST(VirtioThread, NoTurnBeginsAfterTheEndOfTheRunHoweverMuchIsReady) {
    const std::array layout{GuestRange{GuestAddress{0}, 2 * kMiB}};
    const GuestMemory memory(layout, PageSize::k4K);
    devices::testing::RecordingIrq irq;
    StopRequest stop;
    EventFd work;
    std::deque<EventFd> doorbells(1);
    Flooded device;
    devices::virtio::MmioTransport transport(device.identity(), memory, irq, {});
    std::promise<VirtioThread*> made;
    device.on_last_turn = [thread = made.get_future().share()] { thread.get()->end(); };
    VirtioThread thread({device, transport.negotiation(), transport, doorbells, work, stop, kNoSandbox});
    made.set_value(&thread);
    while (device.turns() < Flooded::kTurns) {
        std::this_thread::yield();
    }
    thread.join();
    EXPECT_EQ(device.turns(), Flooded::kTurns);
    EXPECT_EQ(thread.failure(), nullptr);
}

} // namespace
} // namespace vmm
