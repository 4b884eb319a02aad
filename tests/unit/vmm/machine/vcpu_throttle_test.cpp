// The gate at which vCPUs wait, and the throttle that holds them there by turns. Threads take the place of vCPUs.

#include "vmm/machine/vcpu_throttle.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "kvm/host/error.hpp"
#include "support/host_waiting.hpp"
#include "vmm/machine/pause_gate.hpp"

namespace vmm {
namespace {

using testing::eventually;
using testing::kPatience;

/// A thread that is in its guest until it is kicked, and then passes the gate. A kick that comes before the entry ends
/// the next entry at once, like a kick of KVM.
class StandInVcpu {
  public:
    explicit StandInVcpu(PauseGate& gate) : thread_([this, &gate] { run(gate); }) {}
    ~StandInVcpu() {
        is_over_ = true;
        kick();
        thread_.join();
    }
    StandInVcpu(const StandInVcpu&) = delete;
    StandInVcpu& operator=(const StandInVcpu&) = delete;

    void kick() {
        {
            const std::lock_guard hold(lock_);
            is_kicked_ = true;
        }
        kicked_.notify_all();
    }
    [[nodiscard]] bool is_in_guest() const { return is_in_guest_; }
    [[nodiscard]] std::uint64_t entries() const { return entries_; }

  private:
    void run(PauseGate& gate) {
        gate.note_vcpu_thread();
        while (!is_over_) {
            gate.pass();
            std::unique_lock hold(lock_);
            if (!is_kicked_) {
                is_in_guest_ = true;
                ++entries_;
                kicked_.wait(hold, [this] { return is_kicked_; });
                is_in_guest_ = false;
            }
            is_kicked_ = false;
        }
    }

    std::mutex lock_;
    std::condition_variable kicked_;
    bool is_kicked_ = false;
    std::atomic<bool> is_over_ = false;
    std::atomic<bool> is_in_guest_ = false;
    std::atomic<std::uint64_t> entries_ = 0;
    std::thread thread_;
};

class PauseGateWithVcpus : public ::testing::Test {
  protected:
    PauseGateWithVcpus() {
        gate_.open(kVcpus, [this] {
            for (StandInVcpu& vcpu : vcpus_) {
                vcpu.kick();
            }
        });
        for (std::size_t i = 0; i < kVcpus; ++i) {
            vcpus_.emplace_back(gate_);
        }
    }
    ~PauseGateWithVcpus() override { gate_.close(); }

    [[nodiscard]] bool pause() { return gate_.pause(std::chrono::steady_clock::now() + kPatience); }
    /// Waits until all of them are in the guest; false if that does not happen.
    [[nodiscard]] bool all_run() const {
        return eventually([this] { return std::ranges::all_of(vcpus_, &StandInVcpu::is_in_guest); });
    }
    [[nodiscard]] bool none_runs() const { return std::ranges::none_of(vcpus_, &StandInVcpu::is_in_guest); }
    [[nodiscard]] bool none_runs_soon() const {
        return eventually([this] { return none_runs(); });
    }

    static constexpr std::size_t kVcpus = 3;
    PauseGate gate_;
    std::deque<StandInVcpu> vcpus_;
};

TEST_F(PauseGateWithVcpus, HoldsThemUntilTheyAreLetGo) {
    ASSERT_TRUE(all_run());
    gate_.hold();
    EXPECT_TRUE(gate_.is_shut());
    EXPECT_TRUE(none_runs_soon());
    gate_.let_go();
    EXPECT_FALSE(gate_.is_shut());
    EXPECT_TRUE(all_run());
}

TEST_F(PauseGateWithVcpus, APauseWhileTheyAreHeldOutlastsTheHold) {
    ASSERT_TRUE(all_run());
    gate_.hold();
    ASSERT_TRUE(pause());
    EXPECT_TRUE(none_runs());
    gate_.let_go();
    EXPECT_TRUE(gate_.is_shut());
    EXPECT_TRUE(none_runs());
    gate_.resume();
    EXPECT_TRUE(all_run());
}

TEST_F(PauseGateWithVcpus, AHoldDuringAPauseOutlastsThePause) {
    ASSERT_TRUE(pause());
    gate_.hold();
    gate_.resume();
    EXPECT_TRUE(gate_.is_shut());
    EXPECT_TRUE(none_runs());
    gate_.let_go();
    EXPECT_TRUE(all_run());
}

TEST_F(PauseGateWithVcpus, TwoHoldsAreEndedByOneLetGo) {
    gate_.hold();
    gate_.hold();
    EXPECT_TRUE(none_runs_soon());
    gate_.let_go();
    EXPECT_TRUE(all_run());
    gate_.let_go();
    EXPECT_TRUE(all_run());
}

TEST_F(PauseGateWithVcpus, ClosingLetsThemGoForGood) {
    gate_.hold();
    ASSERT_TRUE(pause());
    gate_.close();
    EXPECT_TRUE(all_run());
    gate_.hold();
    EXPECT_FALSE(gate_.is_shut());
    EXPECT_TRUE(pause());
    EXPECT_TRUE(all_run());
}

TEST_F(PauseGateWithVcpus, AVcpuDoesNotPauseItself) {
    EXPECT_NO_THROW(gate_.check_thread());
    std::thread vcpu([this] {
        gate_.note_vcpu_thread();
        EXPECT_THROW(gate_.check_thread(), UsageError);
        EXPECT_NO_THROW(PauseGate().check_thread());
    });
    vcpu.join();
}

TEST(PauseGate, HoldsNobodyBeforeItIsOpened) {
    PauseGate gate;
    gate.hold();
    EXPECT_FALSE(gate.is_shut());
    gate.let_go();
    // A pause is remembered: the guest begins when it is resumed.
    EXPECT_TRUE(gate.pause(std::chrono::steady_clock::now()));
    EXPECT_TRUE(gate.is_shut());
    gate.resume();
    EXPECT_FALSE(gate.is_shut());
}

TEST(PauseGate, APauseGivesUpOnAVcpuThatDoesNotCome) {
    PauseGate gate;
    gate.open(1, [] {});
    EXPECT_FALSE(gate.pause(std::chrono::steady_clock::now()));
    EXPECT_TRUE(gate.is_shut());
    gate.resume();
    gate.close();
}

class VcpuThrottleTest : public PauseGateWithVcpus {
  protected:
    /// Waits until each of them has entered the guest so many times more. They do so only if they are held in between.
    [[nodiscard]] bool all_enter_again(std::uint64_t times) const {
        std::vector<std::uint64_t> before;
        std::ranges::transform(vcpus_, std::back_inserter(before), &StandInVcpu::entries);
        return eventually([&] {
            return std::ranges::equal(vcpus_, before, [times](const StandInVcpu& vcpu, std::uint64_t entries) {
                return vcpu.entries() >= entries + times;
            });
        });
    }

    VcpuThrottle throttle_{gate_};
};

TEST_F(VcpuThrottleTest, HoldsNobodyAtFirst) {
    ASSERT_TRUE(all_run());
    EXPECT_EQ(throttle_.percent(), 0U);
    throttle_.set_percent(0);
    EXPECT_FALSE(gate_.is_shut());
}

TEST_F(VcpuThrottleTest, HoldsThemAndLetsThemGoAgainAndAgain) {
    for (const unsigned percent : {20U, 50U, 99U}) {
        throttle_.set_percent(percent);
        EXPECT_EQ(throttle_.percent(), percent);
        EXPECT_TRUE(all_enter_again(3)) << percent;
    }
}

TEST_F(VcpuThrottleTest, HoldsNobodyAnyMoreAt0) {
    throttle_.set_percent(80);
    ASSERT_TRUE(all_enter_again(1));
    throttle_.set_percent(0);
    // A turn that has begun ends, and no other turn begins.
    EXPECT_TRUE(eventually([this] { return !gate_.is_shut(); }));
    EXPECT_TRUE(all_run());
    throttle_.set_percent(30);
    EXPECT_TRUE(all_enter_again(2));
}

TEST_F(VcpuThrottleTest, PausesAreWholeWhileItHoldsThemByTurns) {
    throttle_.set_percent(60);
    for (int turn = 0; turn < 20; ++turn) {
        ASSERT_TRUE(pause());
        for (int look = 0; look < 20; ++look) {
            ASSERT_TRUE(none_runs());
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        gate_.resume();
        ASSERT_TRUE(all_enter_again(1));
    }
}

TEST_F(VcpuThrottleTest, ThePercentMayChangeWhileTheMachineIsPaused) {
    throttle_.set_percent(99);
    ASSERT_TRUE(pause());
    throttle_.set_percent(0);
    EXPECT_TRUE(none_runs());
    gate_.resume();
    EXPECT_TRUE(all_run());
}

TEST_F(VcpuThrottleTest, AGateThatClosesLetsThemGo) {
    throttle_.set_percent(99);
    ASSERT_TRUE(all_enter_again(1));
    gate_.close();
    EXPECT_TRUE(all_run());
    EXPECT_FALSE(gate_.is_shut());
}

TEST_F(PauseGateWithVcpus, TheEndOfAThrottleLetsThemGo) {
    for (int turn = 0; turn < 10; ++turn) {
        {
            VcpuThrottle throttle(gate_);
            throttle.set_percent(99);
            EXPECT_TRUE(none_runs_soon());
        }
        EXPECT_FALSE(gate_.is_shut());
        EXPECT_TRUE(all_run());
    }
}

} // namespace
} // namespace vmm
