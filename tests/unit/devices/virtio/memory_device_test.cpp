// virtio-mem (virtio 1.2, 5.15).

#include "devices/virtio/memory_device.hpp"

#include <gtest/gtest.h>
#include <poll.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <stop_token>
#include <thread>
#include <utility>
#include <vector>

#include "kvm/host/error.hpp"
#include "support/devices_virtio_driver.hpp"

namespace vmm::devices::testing {
namespace {

using virtio::MemoryChange;
using virtio::MemoryDevice;
using virtio::MemoryOutcome;
using virtio::MemoryState;

constexpr std::uint64_t kBlock = 2 * kMiB;
constexpr GuestRange kRegion{GuestAddress{4 * kGiB}, 512 * kMiB};

constexpr std::uint16_t kPlug = 0;
constexpr std::uint16_t kUnplug = 1;
constexpr std::uint16_t kUnplugAll = 2;
constexpr std::uint16_t kState = 3;

constexpr std::uint16_t kAck = 0;
constexpr std::uint16_t kNack = 1;
constexpr std::uint16_t kBusy = 2;
constexpr std::uint16_t kError = 3;

constexpr std::uint64_t kPluggedSize = 40;
constexpr std::uint64_t kRequestedSize = 48;

MemoryDevice::Settings settings_for(std::uint64_t requested) {
    return {.region = kRegion, .block_bytes = kBlock, .node = 1, .requested_bytes = requested};
}

GuestAddress block(std::uint64_t index) {
    return GuestAddress{to_integer(kRegion.base) + index * kBlock};
}

/// A driver of a memory device, and a host that makes the requested memory, on the test's thread.
class MemoryRig {
  public:
    explicit MemoryRig(MemoryDevice& device) : device_(device), rig_(device) {}

    [[nodiscard]] VirtioRig& rig() noexcept { return rig_; }

    /// Puts a request into the queue, and rings the doorbell.
    void ask(std::uint16_t type, GuestAddress address = {}, std::uint16_t blocks = 0) {
        std::array<std::uint64_t, 3> request{type, to_integer(address), blocks};
        const GuestAddress at = rig_.allocate(sizeof(request));
        answer_at_ = rig_.allocate(10);
        EXPECT_TRUE(rig_.memory().copy_in(at, std::as_bytes(std::span(request))));
        EXPECT_TRUE(rig_.memory().store<std::uint16_t>(answer_at_, 0xeeee));
        rig_.queue(0).add({{at, sizeof(request)}, {answer_at_, 10, kWritable}});
        rig_.ring(0);
        rig_.settle();
    }

    /// The memory that the host is asked for now, and begins to make; nothing if it is asked for none.
    [[nodiscard]] std::optional<MemoryChange> begin() {
        std::stop_source over;
        over.request_stop(); // it does not wait
        const auto change = device_.work().wait(over.get_token());
        return change && device_.work().begin() ? change : std::nullopt;
    }
    void finish(MemoryOutcome outcome) {
        device_.work().finish(outcome);
        rig_.settle();
    }

    /// Makes all requested memory until the driver has its answer. Returns the answer, or nothing if there is none.
    std::optional<std::uint16_t> serve(MemoryOutcome outcome = MemoryOutcome::kDone) {
        while (const auto change = begin()) {
            changes_.push_back(*change);
            finish(outcome);
        }
        return answer();
    }
    std::optional<std::uint16_t> answer() {
        return rig_.queue(0).take_used() ? rig_.memory().load<std::uint16_t>(answer_at_) : std::nullopt;
    }
    [[nodiscard]] std::uint16_t state_in_answer() {
        return rig_.memory().load<std::uint16_t>(answer_at_ + 8).value_or(0xffff);
    }

    std::optional<std::uint16_t> does(std::uint16_t type, GuestAddress address = {}, std::uint16_t blocks = 0) {
        ask(type, address, blocks);
        return serve();
    }
    [[nodiscard]] std::uint64_t plugged_in_config() { return rig_.driver().read_config<std::uint64_t>(kPluggedSize); }

    [[nodiscard]] std::vector<MemoryChange> take_changes() { return std::exchange(changes_, {}); }

  private:
    MemoryDevice& device_;
    VirtioRig rig_;
    GuestAddress answer_at_{};
    std::vector<MemoryChange> changes_;
};

TEST(VirtioMemory, SaysWhereItIsAndHowMuchTheGuestIsAskedFor) { // 5.15.4
    MemoryDevice device("mem0", settings_for(8 * kMiB));
    MemoryRig memory(device);
    ASSERT_TRUE(memory.rig().start());
    auto& driver = memory.rig().driver();
    EXPECT_EQ(driver.read_config<std::uint64_t>(0), kBlock);
    EXPECT_EQ(driver.read_config<std::uint16_t>(8), 1U);
    EXPECT_EQ(driver.read_config<std::uint64_t>(16), to_integer(kRegion.base));
    EXPECT_EQ(driver.read_config<std::uint64_t>(24), kRegion.size);
    EXPECT_EQ(driver.read_config<std::uint64_t>(32), kRegion.size);
    EXPECT_EQ(memory.plugged_in_config(), 0U);
    EXPECT_EQ(driver.read_config<std::uint64_t>(kRequestedSize), 8 * kMiB);
}

TEST(VirtioMemory, TellsOfAnotherAmountAndNotOfWhatTheDriverDoes) {
    constexpr std::uint32_t kConfigChange = 2;
    MemoryDevice device("mem0", settings_for(0));
    MemoryRig memory(device);
    ASSERT_TRUE(memory.rig().start());
    device.set_requested(4 * kMiB);
    memory.rig().settle();
    EXPECT_EQ(memory.rig().driver().read_config<std::uint64_t>(kRequestedSize), 4 * kMiB);
    EXPECT_EQ(memory.rig().driver().take_interrupts() & kConfigChange, kConfigChange);
    EXPECT_EQ(memory.does(kPlug, block(0), 2), kAck);
    EXPECT_EQ(memory.plugged_in_config(), 4 * kMiB);
    EXPECT_EQ(memory.rig().driver().take_interrupts() & kConfigChange, 0U);
}

TEST(VirtioMemory, ThereIsNoAnswerBeforeTheHostHasMadeTheMemory) { // 5.15.6
    MemoryDevice device("mem0", settings_for(64 * kMiB));
    MemoryRig memory(device);
    ASSERT_TRUE(memory.rig().start());
    memory.ask(kPlug, block(3), 4);
    ASSERT_EQ(memory.begin(), (MemoryChange{true, {block(3), 4 * kBlock}}));
    memory.rig().settle();
    EXPECT_EQ(memory.answer(), std::nullopt);
    EXPECT_EQ(device.statistics().plugged, 0U);
    memory.finish(MemoryOutcome::kDone);
    EXPECT_EQ(memory.answer(), kAck);
    EXPECT_EQ(device.statistics().plugged, 4 * kBlock);
}

TEST(VirtioMemory, BlocksComeAndGoAndTheirStateIsTold) {
    MemoryDevice device("mem0", settings_for(64 * kMiB));
    MemoryRig memory(device);
    ASSERT_TRUE(memory.rig().start());
    EXPECT_EQ(memory.does(kPlug, block(0), 4), kAck);
    EXPECT_EQ(memory.does(kUnplug, block(1), 1), kAck);
    EXPECT_EQ(memory.take_changes(),
              (std::vector<MemoryChange>{{true, {block(0), 4 * kBlock}}, {false, {block(1), kBlock}}}));
    const auto state_of = [&](std::uint64_t first, std::uint16_t count) {
        EXPECT_EQ(memory.does(kState, block(first), count), kAck);
        return memory.state_in_answer();
    };
    EXPECT_EQ(state_of(0, 1), 0U);
    EXPECT_EQ(state_of(1, 1), 1U);
    EXPECT_EQ(state_of(0, 4), 2U);
    EXPECT_EQ(memory.does(kUnplugAll), kAck);
    EXPECT_EQ(memory.take_changes(),
              (std::vector<MemoryChange>{{false, {block(0), kBlock}}, {false, {block(2), 2 * kBlock}}}));
    EXPECT_EQ(state_of(0, 256), 1U);
    EXPECT_EQ(memory.plugged_in_config(), 0U);
}

TEST(VirtioMemory, ALongRequestIsMadeInSteps) {
    MemoryDevice device("mem0", settings_for(kRegion.size));
    MemoryRig memory(device);
    ASSERT_TRUE(memory.rig().start());
    EXPECT_EQ(memory.does(kPlug, block(0), 256), kAck);
    const auto changes = memory.take_changes();
    ASSERT_EQ(changes.size(), kRegion.size / MemoryDevice::kStepBytes);
    EXPECT_EQ(changes.back().range.end(), kRegion.end());
}

TEST(VirtioMemory, TheGuestNeverHasMoreThanItIsAskedFor) {
    MemoryDevice device("mem0", settings_for(2 * kBlock));
    MemoryRig memory(device);
    ASSERT_TRUE(memory.rig().start());
    EXPECT_EQ(memory.does(kPlug, block(0), 3), kNack);
    EXPECT_EQ(memory.does(kPlug, block(0), 2), kAck);
    EXPECT_EQ(memory.does(kPlug, block(2), 1), kNack);
    device.set_requested(0); // it may keep the memory that it has
    memory.rig().settle();
    EXPECT_EQ(device.statistics().plugged, 2 * kBlock);
    EXPECT_EQ(memory.does(kPlug, block(2), 1), kNack);
}

TEST(VirtioMemory, WhatIsNoBlockOfItsIsAnError) {
    MemoryDevice device("mem0", settings_for(kRegion.size));
    MemoryRig memory(device);
    ASSERT_TRUE(memory.rig().start());
    EXPECT_EQ(memory.does(kPlug, block(0), 2), kAck);
    static_cast<void>(memory.take_changes());
    for (const std::uint16_t type : {kPlug, kUnplug, kState}) {
        EXPECT_EQ(memory.does(type, block(5), 0), kError);
        EXPECT_EQ(memory.does(type, GuestAddress{to_integer(block(5)) + 4096}, 1), kError);
        EXPECT_EQ(memory.does(type, kRegion.end(), 1), kError);
        EXPECT_EQ(memory.does(type, GuestAddress{0}, 1), kError);
        EXPECT_EQ(memory.does(type, block(255), 2), kError);
        EXPECT_EQ(memory.does(type, block(1), 0xffff), kError);
        EXPECT_EQ(memory.does(type, GuestAddress{UINT64_MAX - kBlock + 1}, 1), kError);
    }
    EXPECT_EQ(memory.does(kPlug, block(1), 2), kError) << "one of them is plugged";
    EXPECT_EQ(memory.does(kUnplug, block(1), 2), kError) << "one of them is not";
    EXPECT_EQ(memory.does(77), kError);
    EXPECT_TRUE(memory.take_changes().empty());
    EXPECT_TRUE(memory.rig().is_alive());
}

TEST(VirtioMemory, ARequestThatIsTooShortBreaksARule) {
    for (const std::uint32_t bytes : {0U, 8U, 23U}) {
        MemoryDevice device("mem0", settings_for(kRegion.size));
        MemoryRig memory(device);
        ASSERT_TRUE(memory.rig().start());
        VirtioRig& rig = memory.rig();
        rig.queue(0).add({{rig.allocate(24), bytes}, {rig.allocate(10), 10, kWritable}});
        rig.ring(0);
        rig.settle();
        EXPECT_FALSE(rig.is_alive()) << bytes;
    }
    MemoryDevice device("mem0", settings_for(kRegion.size));
    MemoryRig memory(device);
    ASSERT_TRUE(memory.rig().start());
    VirtioRig& rig = memory.rig();
    rig.queue(0).add({{rig.allocate(24), 24}, {rig.allocate(10), 9, kWritable}});
    rig.ring(0);
    rig.settle();
    EXPECT_FALSE(rig.is_alive());
}

TEST(VirtioMemory, WhatTheHostCannotMakeWholeIsTakenBackAndTriedLater) {
    MemoryDevice device("mem0", settings_for(kRegion.size));
    MemoryRig memory(device);
    ASSERT_TRUE(memory.rig().start());
    memory.ask(kPlug, block(0), 130); // three steps
    for (int step = 0; step < 2; ++step) {
        ASSERT_TRUE(memory.begin());
        memory.finish(MemoryOutcome::kDone);
    }
    ASSERT_TRUE(memory.begin());
    memory.finish(MemoryOutcome::kCannot);
    EXPECT_EQ(memory.serve(), kBusy);
    for (const MemoryChange& change : memory.take_changes()) {
        EXPECT_FALSE(change.plug);
    }
    EXPECT_EQ(device.statistics().plugged, 0U);
    EXPECT_EQ(device.statistics().refused, 1U);
    EXPECT_EQ(memory.does(kPlug, block(0), 130), kAck);
    EXPECT_EQ(memory.does(kUnplug, block(0), 130), kAck);
}

TEST(VirtioMemory, WhatCanNeitherBeDoneNorUndoneNeedsAReset) {
    MemoryDevice device("mem0", settings_for(kRegion.size));
    MemoryRig memory(device);
    ASSERT_TRUE(memory.rig().start());
    EXPECT_EQ(memory.does(kPlug, block(0), 130), kAck);
    memory.ask(kUnplug, block(0), 130);
    ASSERT_TRUE(memory.begin());
    memory.finish(MemoryOutcome::kDone);
    EXPECT_EQ(memory.serve(MemoryOutcome::kCannot), kError);
    EXPECT_FALSE(memory.rig().is_alive());
}

TEST(VirtioMemory, AResetWaitsForWhatTheHostHasBegunAndForNothingElse) {
    MemoryDevice device("mem0", settings_for(kRegion.size));
    MemoryRig memory(device);
    ASSERT_TRUE(memory.rig().start());
    memory.ask(kPlug, block(0), 4);
    device.stop(); // nobody has begun
    EXPECT_TRUE(device.work().is_under_way());
    device.ready(device.work().source().fd, 0);
    EXPECT_TRUE(device.is_idle());
    EXPECT_EQ(memory.begin(), std::nullopt);

    MemoryDevice other("mem0", settings_for(kRegion.size));
    MemoryRig begun(other);
    ASSERT_TRUE(begun.rig().start());
    begun.ask(kPlug, block(0), 4);
    ASSERT_TRUE(begun.begin());
    other.stop();
    EXPECT_FALSE(other.is_idle());
    other.work().finish(MemoryOutcome::kDone);
    other.ready(other.work().source().fd, 0);
    EXPECT_TRUE(other.is_idle());
    EXPECT_EQ(other.statistics().plugged, 4 * kBlock) << "it is there, whoever asked for it";
}

TEST(VirtioMemory, BlocksStayPluggedWhenTheDriverResetsTheDevice) {
    MemoryDevice device("mem0", settings_for(kRegion.size));
    MemoryRig memory(device);
    ASSERT_TRUE(memory.rig().start());
    EXPECT_EQ(memory.does(kPlug, block(7), 2), kAck);
    ASSERT_TRUE(memory.rig().start());
    EXPECT_EQ(memory.plugged_in_config(), 2 * kBlock);
    EXPECT_EQ(memory.does(kUnplugAll), kAck);
    EXPECT_EQ(memory.take_changes().back(), (MemoryChange{false, {block(7), 2 * kBlock}}));
}

TEST(MemoryWork, EveryChangeIsEitherMadeOnceOrPutOff) {
    constexpr int kChanges = 2000;
    virtio::MemoryWork work;
    std::atomic<int> made{0};
    std::jthread host([&](const std::stop_token& stop) {
        while (work.wait(stop)) {
            if (work.begin()) {
                ++made;
                work.finish(MemoryOutcome::kDone);
            }
        }
    });
    int done = 0;
    int put_off = 0;
    for (int i = 0; i < kChanges; ++i) {
        work.ask({true, {block(0), kBlock}});
        if (i % 2 == 0) {
            work.cancel();
        }
        std::optional<MemoryOutcome> outcome;
        while (!outcome) {
            pollfd over{work.source().fd, POLLIN, 0};
            ASSERT_EQ(::poll(&over, 1, 100'000), 1);
            outcome = work.take_outcome();
        }
        ++(*outcome == MemoryOutcome::kDone ? done : put_off);
        EXPECT_FALSE(work.is_under_way());
    }
    host.request_stop();
    host.join();
    EXPECT_EQ(done, made);
    EXPECT_EQ(done + put_off, kChanges);
}

TEST(StateOfMemory, ARequestThatIsHalfDoneGoesOnElsewhere) {
    MemoryDevice first("mem0", settings_for(kRegion.size));
    MemoryRig memory(first);
    VirtioRig& rig = memory.rig();
    ASSERT_TRUE(rig.start());
    memory.ask(kPlug, block(0), 130);
    ASSERT_TRUE(memory.begin());
    memory.finish(MemoryOutcome::kDone);
    MemoryState saved;
    auto* const second = rig.replace_device([&](const virtio::DeviceState& state) {
        saved = std::get<MemoryState>(state);
        return std::make_unique<MemoryDevice>("mem0", settings_for(0), saved);
    });
    ASSERT_TRUE(second);
    EXPECT_EQ(saved.done_blocks, 64U);
    EXPECT_EQ(MemoryDevice::plugged_in(saved, settings_for(0)), (std::vector<GuestRange>{{block(0), 64 * kBlock}}));
    EXPECT_EQ(second->statistics().requested, kRegion.size) << "as the guest was told";
    MemoryDevice& there = *second;
    rig.settle();
    std::vector<MemoryChange> changes;
    std::stop_source over;
    over.request_stop();
    while (const auto change = there.work().wait(over.get_token())) {
        ASSERT_TRUE(there.work().begin());
        changes.push_back(*change);
        there.work().finish(MemoryOutcome::kDone);
        rig.settle();
    }
    ASSERT_EQ(changes.size(), 2U);
    EXPECT_EQ(changes.front().range.base, block(64));
    EXPECT_EQ(memory.answer(), kAck);
    EXPECT_EQ(there.statistics().plugged, 130 * kBlock);
}

TEST(StateOfMemory, ThatOfAnotherRegionIsRefused) {
    MemoryDevice device("mem0", settings_for(0));
    const auto good = std::get<MemoryState>(device.state());
    const auto refuses = [](const MemoryState& state) {
        EXPECT_THROW(MemoryDevice("mem0", settings_for(0), state), Error);
        EXPECT_THROW(static_cast<void>(MemoryDevice::plugged_in(state, settings_for(0))), Error);
    };
    EXPECT_NO_THROW(MemoryDevice("mem0", settings_for(0), good));
    MemoryState state = good;
    state.address += kBlock;
    refuses(state);
    state = good;
    state.block_bytes = 4096;
    refuses(state);
    state = good;
    state.plugged.pop_back();
    refuses(state);
    state = good;
    state.requested_bytes = kRegion.size + kBlock;
    refuses(state);
    state = good;
    state.told_bytes = 4096;
    refuses(state);
    state = good;
    state.done_blocks = 257;
    refuses(state);
}

} // namespace
} // namespace vmm::devices::testing
