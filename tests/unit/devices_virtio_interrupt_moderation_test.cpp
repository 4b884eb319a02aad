// When a driver is told.

#include <gtest/gtest.h>

#include <chrono>

#include "devices/virtio/interrupt_moderation.hpp"

namespace vmm::devices::testing {
namespace {

using std::chrono::microseconds;
using virtio::InterruptModeration;

constexpr std::uint64_t kBytes = 4096; // of a request

/// A driver that keeps `depth` requests under way, `gap` apart, each done at once. Returns the interrupts for
/// `requests`.
class Driver {
  public:
    explicit Driver(unsigned depth, microseconds gap = microseconds{10}) : depth_(depth), gap_(gap) {}

    unsigned interrupts_for(unsigned requests) {
        unsigned interrupts = 0;
        for (unsigned done = 0; done < requests;) {
            // What the driver was told of it replaces; then it has nothing more to give.
            for (; free_ != 0; --free_, ++done) {
                now_ += gap_;
                if (moderation_.is_due(now_, 0)) {
                    tell();
                    ++interrupts;
                }
                moderation_.took(now_, 1, 1 * kBytes);
                moderation_.finished(now_, 1);
                ++waiting_;
            }
            while (!moderation_.is_due(now_, 0)) {
                now_ += microseconds{1};
                ++waited_;
            }
            tell();
            ++interrupts;
        }
        return interrupts;
    }

    [[nodiscard]] unsigned microseconds_waited() const { return waited_; }

  private:
    void tell() {
        moderation_.told();
        told_ += waiting_;
        waiting_ = 0;
        free_ += told_;
        told_ = 0;
    }

    InterruptModeration moderation_;
    InterruptModeration::Clock::time_point now_{std::chrono::seconds{1}};
    unsigned depth_;
    microseconds gap_;
    unsigned free_ = depth_;
    unsigned waiting_ = 0;
    unsigned told_ = 0;
    unsigned waited_ = 0;
};

TEST(InterruptModeration, TellsADriverWithOneRequestAtATimeAtOnce) {
    Driver driver(1);
    static_cast<void>(driver.interrupts_for(1000)); // It finds that out.
    const unsigned before = driver.microseconds_waited();
    EXPECT_EQ(driver.interrupts_for(1000), 1000U);
    // A probe now and then, of two distances.
    EXPECT_LE(driver.microseconds_waited() - before, 21U * (1 + 1000 / InterruptModeration::kRarestProbe));
}

TEST(InterruptModeration, TellsADriverWithManyOfManyAtOnce) {
    Driver driver(32);
    static_cast<void>(driver.interrupts_for(1000));
    EXPECT_LE(driver.interrupts_for(32000), 32000U / 24);
}

TEST(InterruptModeration, HoldsNoMoreThanItMay) {
    InterruptModeration moderation;
    InterruptModeration::Clock::time_point now{std::chrono::seconds{1}};
    for (int i = 0; i < 100; ++i) { // However many came together before.
        moderation.took(now, 200, 200 * kBytes);
        moderation.finished(now, 200);
        EXPECT_TRUE(moderation.is_due(now, 0));
        moderation.told();
    }
    moderation.took(now, 1, 1 * kBytes);
    moderation.finished(now, 1);
    EXPECT_FALSE(moderation.is_due(now, 0));
    EXPECT_TRUE(moderation.is_due(now + InterruptModeration::kLongestGap, 0));
    for (int i = 0; i < 40; ++i) { // One after the other, none of them late.
        now += microseconds{100};
        moderation.took(now, 1, 1 * kBytes);
        moderation.finished(now, 1);
    }
    EXPECT_TRUE(moderation.is_due(now, 0));
}

TEST(InterruptModeration, SleepsUntilLargeRequestsAreDoneAndLooksForSmallOnes) {
    InterruptModeration moderation;
    InterruptModeration::Clock::time_point now{std::chrono::seconds{1}};
    const auto serve = [&](std::uint64_t bytes) {
        for (int i = 0; i < 100; ++i) { // Eight at a time, one a millisecond.
            now += std::chrono::milliseconds{8};
            moderation.took(now, 8, 8 * bytes);
            moderation.finished(now, 8);
            moderation.told();
        }
        moderation.took(now, 8, 8 * bytes);
        moderation.finished(now, 1);
    };
    serve(1 << 20);
    EXPECT_TRUE(moderation.is_for_sleeping());
    EXPECT_GT(moderation.patience(), microseconds{1500}); // Until the next one is done, too.
    EXPECT_FALSE(moderation.is_due(moderation.deadline() - microseconds{1}, 7));
    EXPECT_TRUE(moderation.is_due(moderation.deadline(), 7));
    EXPECT_LE(moderation.deadline() - now, InterruptModeration::kLongestHold);
    moderation.told();
    serve(512);
    EXPECT_FALSE(moderation.is_for_sleeping());
    EXPECT_LE(moderation.patience(), InterruptModeration::kLongestGap);
}

TEST(InterruptModeration, DoesNotWaitForTheLastWhileTheHostWorks) {
    InterruptModeration moderation;
    const InterruptModeration::Clock::time_point now{std::chrono::seconds{1}};
    moderation.took(now, 32, 32 * kBytes);
    moderation.finished(now, 32);
    moderation.told();
    moderation.took(now, 32, 32 * kBytes);
    moderation.finished(now, 15);
    EXPECT_FALSE(moderation.is_due(now, 17));
    moderation.finished(now, 1);
    EXPECT_TRUE(moderation.is_due(now, 16));
}

TEST(InterruptModeration, HasNothingToTellWhenNothingIsDone) {
    InterruptModeration moderation;
    const InterruptModeration::Clock::time_point now{std::chrono::seconds{1}};
    EXPECT_FALSE(moderation.is_due(now, 0));
    moderation.took(now, 3, 3 * kBytes);
    EXPECT_FALSE(moderation.is_due(now + std::chrono::hours{1}, 3));
    EXPECT_FALSE(moderation.holds_any());
    moderation.finished(now, 1);
    moderation.reset();
    EXPECT_FALSE(moderation.holds_any());
}

} // namespace
} // namespace vmm::devices::testing
