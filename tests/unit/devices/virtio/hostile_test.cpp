// A driver breaks every rule, against a device that only echoes. So every error found is an error of the queue or of
// the registers.
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <random>
#include <set>
#include <stop_token>
#include <string>
#include <thread>

#include "support/devices_echo_device.hpp"
#include "support/devices_hostile_driver.hpp"

namespace vmm::devices::testing {
namespace {

bool echoes(VirtioRig& rig, std::uint16_t index) {
    const GuestAddress in = rig.allocate(16);
    const GuestAddress out = rig.allocate(16);
    if (!rig.memory().store(in, std::uint64_t{0x0123456789abcdef})) {
        return false;
    }
    const std::uint16_t head = rig.queue(index).add({{in, 8}, {out, 8, kWritable}});
    rig.ring(index);
    return rig.wait_for_used(index) == Used{head, 8} && rig.memory().load<std::uint64_t>(out) == 0x0123456789abcdef;
}

class EchoHostile : public ::testing::TestWithParam<HostileCase> {};

TEST_P(EchoHostile, IsSurvivedByAQueue) {
    run_hostile_case(GetParam(), {.make = [] { return std::make_unique<EchoDevice>(); },
                                  .queue = 0,
                                  .request = {},
                                  .works = [](VirtioRig& rig) { return echoes(rig, 0) && echoes(rig, 1); }});
}

TEST_P(EchoHostile, IsSurvivedByAQueueOfFewEntries) {
    run_hostile_case(GetParam(), {.make = [] { return std::make_unique<EchoDevice>(); },
                                  .queue = 1,
                                  .request = {},
                                  .works = [](VirtioRig& rig) { return echoes(rig, 0) && echoes(rig, 1); }});
}

/// A slow echo: every request is in flight until the turn after the one that took it.
class SlowEcho final : public virtio::Device {
  public:
    [[nodiscard]] const virtio::Identity& identity() const noexcept override { return echo_.identity(); }
    void activate(virtio::Activation activation, virtio::DriverLink& driver) override {
        hold();
        echo_.activate(std::move(activation), driver);
        release();
    }
    void doorbell(std::uint16_t index) override {
        hold();
        echo_.doorbell(index);
        release();
    }
    [[nodiscard]] std::vector<virtio::Source> sources() const override { return echo_.sources(); }
    void ready(int fd, std::uint32_t events) override { echo_.ready(fd, events); }
    void stop() override { echo_.stop(); }
    [[nodiscard]] bool is_idle() const noexcept override { return echo_.is_idle(); }
    void stop_queue(std::uint16_t index) override { echo_.stop_queue(index); }
    [[nodiscard]] bool is_queue_idle(std::uint16_t index) const noexcept override { return echo_.is_queue_idle(index); }
    void restart_queue(std::uint16_t index, virtio::Queue queue) override {
        hold();
        echo_.restart_queue(index, std::move(queue));
        release();
    }

  private:
    void hold() { echo_.hold(); }
    void release() {
        if (echo_.held() > 0) {
            echo_.release();
        }
    }
    EchoDevice echo_;
};

TEST_P(EchoHostile, IsSurvivedWithRequestsInFlight) {
    run_hostile_case(GetParam(), {.make = [] { return std::make_unique<SlowEcho>(); },
                                  .queue = 0,
                                  .request = {},
                                  .works = [](VirtioRig& rig) { return echoes(rig, 0) && echoes(rig, 1); }});
}

INSTANTIATE_TEST_SUITE_P(Every, EchoHostile, ::testing::ValuesIn(hostile_cases()), hostile_case_name);

TEST(HostileCases, HaveNamesOfTheirOwn) {
    std::set<std::string> names;
    for (const HostileCase& each : hostile_cases()) {
        EXPECT_TRUE(names.insert(each.name).second) << each.name;
    }
}

#ifndef VMM_THREAD_SANITIZED // The race is intended.
// The driver changes everything while the device looks at it: the device must use the same copy that it has checked.
TEST(HostileMemory, ThatChangesWhileItIsLookedAtBreaksNothing) {
    EchoDevice device;
    VirtioRig rig{device};
    ASSERT_TRUE(rig.start());
    const GuestAddress data = rig.allocate(65536);
    const GuestAddress table = rig.allocate(4096);
    std::jthread other_vcpu([&, queue = rig.queue(0)](const std::stop_token& stop) mutable {
        std::mt19937_64 random{7};
        while (!stop.stop_requested()) {
            const RawDescriptor descriptor{
                random() % 8 == 0 ? random() : to_integer(random() % 4 == 0 ? table : data),
                static_cast<std::uint32_t>(random() % 8 == 0 ? random() : random() % 256 / 16 * 16),
                static_cast<std::uint16_t>(random() % 8), static_cast<std::uint16_t>(random() % 260)};
            (void)rig.memory().store(table + random() % 256 * 16, descriptor);
            queue.set_descriptor(static_cast<std::uint16_t>(random() % 256), descriptor);
            queue.set_ring(static_cast<std::uint16_t>(random()), static_cast<std::uint16_t>(random() % 257));
        }
    });
    unsigned broken = 0;
    // Repeats until both outcomes were seen: with one processor the other thread must first get its turn.
    const auto end = std::chrono::steady_clock::now() + vmm::testing::kPatience;
    for (unsigned i = 0;
         i < 3000 || ((broken == 0 || device.answered() == 0) && std::chrono::steady_clock::now() < end); ++i) {
        for (unsigned j = 0; j < 8; ++j) {
            rig.queue(0).set_available_index(static_cast<std::uint16_t>(rig.queue(0).available_index() + 1));
        }
        rig.driver().ring(0);
        rig.pump().turn();
        if (rig.needs_reset()) {
            ++broken;
            ASSERT_TRUE(rig.reset());
            rig.driver().negotiate(rig.driver().device_features());
            rig.queue(0).set_available_index(0);
            ASSERT_TRUE(rig.driver().enable_queue(0, rig.queue(0).geometry()));
            rig.driver().add_status(virtio::kStatusDriverOk);
            rig.pump().turn();
        }
    }
    other_vcpu.request_stop();
    other_vcpu.join();
    EXPECT_GT(broken, 0U);
    EXPECT_GT(device.answered(), 0U);
    ASSERT_TRUE(rig.start());
    EXPECT_TRUE(echoes(rig, 0));
}
#endif

} // namespace
} // namespace vmm::devices::testing
