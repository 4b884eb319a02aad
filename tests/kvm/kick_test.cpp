// Taking a vCPU out of the guest.

#include "kvm/host/blocked_signals.hpp"
#include "kvm/kick.hpp"

#include <gtest/gtest.h>
#include <pthread.h>

#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstring>
#include <future>
#include <thread>
#include <variant>

#include "support/host_waiting.hpp"
#include "support/kvm_guest.hpp"
#include "support/kvm_require.hpp"

namespace vmm::kvm {
namespace {

using namespace std::chrono_literals;
using testing::Code;
using testing::name_of;
using testing::SmallVm;

/// Runs a vCPU once, on a thread of its own.
class OneRun {
  public:
    explicit OneRun(Vcpu& vcpu)
        : thread_([this, &vcpu] {
              block_signals_in_this_thread();
              exit_.set_value(vcpu.run());
          }) {}

    void kick() { kvm::kick(thread_.native_handle()); }
    /// The exit, or nothing if there was none within `time`.
    std::optional<Exit> wait_for(std::chrono::milliseconds time) {
        return result_.wait_for(time) == std::future_status::ready ? std::optional(result_.get()) : std::nullopt;
    }

  private:
    std::promise<Exit> exit_;
    std::future<Exit> result_ = exit_.get_future();
    std::jthread thread_;
};

/// Kicks a vCPU that is in the guest already. Returns the result.
std::optional<Exit> kick_while_running(Vcpu& vcpu) {
    OneRun run(vcpu);
    EXPECT_FALSE(run.wait_for(50ms)) << "it came back by itself";
    run.kick();
    auto exit = run.wait_for(testing::kPatience);
    if (!exit) {
        ADD_FAILURE() << "a kick was lost: this test cannot end";
        std::terminate();
    }
    return exit;
}

class Kick : public testing::KvmTest {
  protected:
    // Code that runs vCPUs on the test's own thread must have blocked signals. The next test finds the masks as they
    // were.
    Kick() { ::pthread_sigmask(SIG_SETMASK, nullptr, &before_); }
    ~Kick() override { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

  private:
    sigset_t before_{};
};

TEST_F(Kick, TakesOutAGuestThatSpinsForEver) {
    SmallVm small;
    Vcpu vcpu = small.vcpu_with(testing::kSpin);
    const auto exit = kick_while_running(vcpu);
    EXPECT_TRUE(std::holds_alternative<KickedExit>(*exit)) << name_of(*exit);
}

TEST_F(Kick, TakesOutAGuestThatHasHalted) {
    SmallVm small(SmallVm::Interrupts::kInKernel);
    Vcpu vcpu = small.vcpu_with(testing::kHalt);
    const auto exit = kick_while_running(vcpu);
    EXPECT_TRUE(std::holds_alternative<KickedExit>(*exit)) << name_of(*exit);
}

TEST_F(Kick, TakesOutAVcpuThatWaitsToBeStarted) {
    SmallVm small(SmallVm::Interrupts::kInKernel);
    const Vcpu boot_processor(small.vm, 0);
    Vcpu vcpu(small.vm, 1);
    const auto exit = kick_while_running(vcpu);
    EXPECT_TRUE(std::holds_alternative<KickedExit>(*exit)) << name_of(*exit);
}

TEST_F(Kick, LosesNothingOfTheGuest) {
    SmallVm small;
    Vcpu vcpu = small.vcpu_with({0x40, 0xe6, 0x80, 0xeb, 0xfb}); // inc %ax; out %al, $0x80; again
    block_signals_in_this_thread();
    unsigned expected = 0;
    for (int i = 0; i < 200; ++i) {
        if (i % 3 == 0) {
            kick(::pthread_self());
        }
        const Exit exit = vcpu.run();
        if (const auto* const port = std::get_if<PioExit>(&exit)) {
            expected = (expected + 1) & 0xff;
            ASSERT_EQ(testing::values_of(port->data), std::vector<unsigned>{expected});
        } else {
            ASSERT_TRUE(std::holds_alternative<KickedExit>(exit)) << name_of(exit);
        }
    }
    EXPECT_GT(expected, 100U);
}

TEST_F(Kick, BeforeRunIsNeverLost) {
    SmallVm small;
    Vcpu vcpu = small.vcpu_with(testing::kSpin);
    block_signals_in_this_thread();
    for (int round = 0; round < 1000; ++round) {
        kick(::pthread_self());
        const Exit exit = vcpu.run(); // It would never return if the kick were lost.
        ASSERT_TRUE(std::holds_alternative<KickedExit>(exit)) << name_of(exit);
    }
}

TEST_F(Kick, AtAnyMomentIsNeverLost) {
    constexpr int kRounds = 500;
    SmallVm small;
    Vcpu vcpu = small.vcpu_with(testing::kSpin);
    std::atomic<int> entered{0};
    std::atomic<int> left{0};
    std::jthread runner([&] {
        block_signals_in_this_thread();
        for (int round = 0; round < kRounds; ++round) {
            ++entered;
            static_cast<void>(vcpu.run()); // It would never return if a kick were lost.
            ++left;
        }
    });
    for (int round = 1; round <= kRounds; ++round) {
        while (entered < round) {
        }
        for (int pause = 0; pause < round % 50 * 20; ++pause) { // earlier and later around the entry
            std::atomic_signal_fence(std::memory_order_seq_cst);
        }
        kick(runner.native_handle());
        while (left < round) {
            std::this_thread::yield();
        }
    }
    EXPECT_EQ(left, kRounds);
}

TEST_F(Kick, ManyTimesCountsOnce) {
    SmallVm small;
    Vcpu vcpu = small.vcpu_with(testing::kSayAndSpin);
    block_signals_in_this_thread();
    for (int i = 0; i < 10; ++i) {
        kick(::pthread_self());
    }
    EXPECT_TRUE(std::holds_alternative<KickedExit>(vcpu.run()));
    const Exit exit = vcpu.run();
    EXPECT_TRUE(std::holds_alternative<PioExit>(exit)) << name_of(exit);
}

TEST_F(Kick, ThatIsDiscardedIsForgotten) {
    SmallVm small;
    Vcpu vcpu = small.vcpu_with(testing::kSayAndSpin);
    block_signals_in_this_thread();
    kick(::pthread_self());
    kick(::pthread_self());
    discard_pending_kicks();
    const Exit exit = vcpu.run();
    EXPECT_TRUE(std::holds_alternative<PioExit>(exit)) << name_of(exit);
}

TEST_F(Kick, LeavesTheSignalDispositionsOfTheProcessAlone) {
    const auto dispositions = [] {
        std::array<struct sigaction, 65> actions{};
        for (int signal = 1; signal <= 64; ++signal) {
            ::sigaction(signal, nullptr, &actions.at(static_cast<std::size_t>(signal)));
        }
        return actions;
    };
    const auto before = dispositions();
    SmallVm small;
    Vcpu vcpu = small.vcpu_with(testing::kSpin);
    static_cast<void>(kick_while_running(vcpu));
    const auto after = dispositions();
    for (std::size_t signal = 1; signal <= 64; ++signal) {
        EXPECT_EQ(before.at(signal).sa_handler, after.at(signal).sa_handler) << signal;
        EXPECT_EQ(before.at(signal).sa_flags, after.at(signal).sa_flags) << signal;
    }
}

TEST_F(Kick, LeavesTheCallersSignalMaskAlone) {
    sigset_t before{};
    sigset_t after{};
    ::pthread_sigmask(SIG_SETMASK, nullptr, &before);
    SmallVm small;
    Vcpu vcpu = small.vcpu_with(testing::kSpin);
    static_cast<void>(kick_while_running(vcpu));
    ::pthread_sigmask(SIG_SETMASK, nullptr, &after);
    for (int signal = 1; signal <= SIGRTMAX; ++signal) { // Beyond that the C library leaves the sets as they are.
        EXPECT_EQ(sigismember(&before, signal), sigismember(&after, signal)) << signal;
    }
}

TEST_F(Kick, SignalsOfTheProcessDoNotTakeAVcpuOut) {
    struct sigaction ignore {};
    struct sigaction before {};
    ignore.sa_handler = [](int) {};
    ::sigaction(SIGUSR1, &ignore, &before);
    SmallVm small;
    Vcpu vcpu = small.vcpu_with(testing::kSpin);
    std::promise<pthread_t> self;
    std::promise<Exit> result;
    auto exit = result.get_future();
    const std::jthread runner([&] {
        block_signals_in_this_thread();
        self.set_value(::pthread_self());
        result.set_value(vcpu.run());
    });
    const pthread_t thread = self.get_future().get();
    ::pthread_kill(thread, SIGUSR1);
    EXPECT_EQ(exit.wait_for(50ms), std::future_status::timeout);
    kick(thread);
    EXPECT_TRUE(std::holds_alternative<KickedExit>(exit.get()));
    ::sigaction(SIGUSR1, &before, nullptr);
}

TEST_F(Kick, OfANewThreadCannotComeTooEarly) {
    // The thread starts with the kick's signal blocked. If it were not blocked, its default action would end the
    // process.
    for (int round = 0; round < 100; ++round) {
        std::thread newborn;
        {
            const AllSignalsBlocked inherited;
            newborn = std::thread([] {});
        }
        kick(newborn.native_handle());
        newborn.join();
    }
}

} // namespace
} // namespace vmm::kvm
