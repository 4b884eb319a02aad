// The moments at which a driver is told.

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <utility>

#include "devices/virtio/interrupt_moderation.hpp"

namespace vmm::devices::testing {
namespace {

using std::chrono::microseconds;
using virtio::InterruptModeration;

constexpr std::uint64_t kBytes = 4096; // of a request

/// A driver that keeps `depth` requests in flight, `gap` apart. Each is done at once. Returns the interrupts for
/// `requests`.
class Driver {
  public:
    explicit Driver(unsigned depth, microseconds gap = microseconds{10}) : depth_(depth), gap_(gap) {}

    unsigned interrupts_for(unsigned requests) {
        unsigned interrupts = 0;
        for (unsigned done = 0; done < requests;) {
            // The driver replaces the requests that it was told of; then it has no more requests.
            for (; free_ != 0; --free_, ++done) {
                now_ += gap_;
                if (moderation_.is_due(now_, 0)) {
                    tell();
                    ++interrupts;
                }
                moderation_.took(now_, 1, 1 * kBytes);
                moderation_.finished(now_, 1, false);
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
        moderation_.told(now_, 0);
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
    static_cast<void>(driver.interrupts_for(1000)); // the device learns that
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
    for (int i = 0; i < 100; ++i) { // even if many came together before
        moderation.took(now, 200, 200 * kBytes);
        moderation.finished(now, 200, false);
        EXPECT_TRUE(moderation.is_due(now, 0));
        moderation.told(now, 0);
    }
    moderation.took(now, 1, 1 * kBytes);
    moderation.finished(now, 1, false);
    EXPECT_FALSE(moderation.is_due(now, 0));
    EXPECT_TRUE(moderation.is_due(now + InterruptModeration::kLongestGap, 0));
    for (int i = 0; i < 40; ++i) { // one after the other, none of them late
        now += microseconds{100};
        moderation.took(now, 1, 1 * kBytes);
        moderation.finished(now, 1, false);
    }
    EXPECT_TRUE(moderation.is_due(now, 0));
}

/// A driver that keeps `depth` requests of 1 MiB in flight and needs `driver_time` to replace one. Its host works on
/// one after the other, `host_time` each, in steps of 10 us.
class LargeDriver {
  public:
    LargeDriver(unsigned depth, microseconds driver_time, microseconds host_time)
        : depth_(depth), to_add_(depth), driver_time_(driver_time), host_time_(host_time) {}

    /// Runs so many requests; the results are in the members.
    void run(unsigned requests) {
        interrupts = doorbells = idle_steps = steps = 0;
        for (unsigned done = 0; done < requests; ++steps) {
            now_ += kStep;
            done += step();
        }
    }

    unsigned interrupts = 0;
    unsigned doorbells = 0;
    unsigned idle_steps = 0; ///< the driver and the host had nothing to do, at once
    unsigned steps = 0;

  private:
    static constexpr microseconds kStep{10};

    unsigned step() {
        const bool driver_rests = to_add_ == 0;
        const bool host_rests = taken_ == 0;
        idle_steps += driver_rests && host_rests ? 1 : 0;
        driver_did_ += driver_rests ? microseconds{0} : kStep;
        if (!driver_rests && driver_did_ >= driver_time_) {
            driver_did_ = {};
            --to_add_;
            ++added_;
            if (added_ == doorbell_at_) {
                ++doorbells;
                serve();
            }
        }
        unsigned done = 0;
        host_did_ += host_rests ? microseconds{0} : kStep;
        if (!host_rests && host_did_ >= host_time_) {
            host_did_ = {};
            --taken_;
            ++done_;
            done = 1;
            serve();
        }
        if (alarm_ && now_ >= *alarm_) {
            serve();
        }
        return done;
    }
    void serve() {
        alarm_.reset();
        if (added_ != 0) {
            moderation_.took(now_, added_, std::uint64_t{added_} << 20);
            taken_ += std::exchange(added_, 0);
        }
        if (done_ != 0) {
            moderation_.finished(now_, std::exchange(done_, 0), false);
        }
        held_ = depth_ - to_add_ - taken_;
        if (moderation_.is_due(now_, taken_)) {
            moderation_.told(now_, taken_);
            to_add_ += held_;
            ++interrupts;
        }
        doorbell_at_ = moderation_.doorbell_after(now_);
        if (moderation_.holds_any() || doorbell_at_ > 1) {
            alarm_ = moderation_.deadline();
        }
    }

    InterruptModeration moderation_;
    InterruptModeration::Clock::time_point now_{std::chrono::seconds{1}};
    unsigned depth_;
    unsigned to_add_; ///< the driver may add them, and did not yet
    unsigned added_ = 0;
    unsigned taken_ = 0;
    unsigned done_ = 0;
    unsigned held_ = 0;
    unsigned doorbell_at_ = 1;
    microseconds driver_time_;
    microseconds host_time_;
    microseconds driver_did_{};
    microseconds host_did_{};
    std::optional<InterruptModeration::Clock::time_point> alarm_;
};

TEST(InterruptModeration, OfLargeRequestsTakesHalfOfThemTogetherAndNeitherSideWaits) {
    constexpr unsigned kRequests = 4000;
    for (const unsigned depth : {8U, 32U}) {
        for (const auto& [driver_time, host_time] :
             {std::pair{microseconds{900}, microseconds{300}}, {microseconds{300}, microseconds{900}}}) {
            SCOPED_TRACE(::testing::Message() << "depth " << depth << ", " << driver_time.count() << " us a request");
            LargeDriver driver(depth, driver_time, host_time);
            driver.run(1000);
            driver.run(kRequests);
            EXPECT_LE(driver.interrupts, 3 * kRequests / depth + kRequests / 40);
            EXPECT_LE(driver.doorbells, kRequests / 3);
            EXPECT_LE(driver.idle_steps, driver.steps / 50);
            const auto least = kRequests * std::max(driver_time, host_time) / microseconds{10};
            EXPECT_LE(driver.steps, least + least / 20) << "the slower side is to be busy all the time";
        }
    }
}

TEST(InterruptModeration, OfOneLargeRequestAtATimeTellsAndIsToldAtOnce) {
    LargeDriver driver(1, microseconds{100}, microseconds{300});
    driver.run(1000);
    driver.run(1000);
    EXPECT_EQ(driver.interrupts, 1000U);
    EXPECT_GE(driver.doorbells, 999U);
    EXPECT_LE(driver.steps, 1000U * 41);
}

TEST(InterruptModeration, ForgetsALargeRequestThatTheDriverDoesNotReplace) {
    InterruptModeration moderation;
    InterruptModeration::Clock::time_point now{std::chrono::seconds{1}};
    for (int i = 0; i < 100; ++i) { // Eight at a time, one a millisecond.
        now += std::chrono::milliseconds{8};
        moderation.took(now, 8, 8ULL << 20);
        moderation.finished(now, 8, false);
        now = moderation.is_due(now, 0) ? now
                                        : moderation.deadline(); // Now and then it finds out whether there are more.
        ASSERT_TRUE(moderation.is_due(now, 0));
        moderation.told(now, 0);
    }
    ASSERT_TRUE(moderation.is_for_sleeping());
    int waits = 0;
    EXPECT_EQ(moderation.doorbell_after(now), 4U);
    EXPECT_LE(moderation.deadline() - now, 2 * InterruptModeration::kLongestLargeGap);
    now = moderation.deadline();
    EXPECT_EQ(moderation.doorbell_after(now), 1U);
    // From now on one request at a time: the device waits in vain a few times, and then no more.
    for (int i = 0; i < 100; ++i) {
        now += std::chrono::milliseconds{1};
        moderation.took(now, 1, 1 << 20);
        moderation.finished(now, 1, false);
        if (!moderation.is_due(now, 0)) {
            ++waits;
            EXPECT_LE(moderation.deadline() - now, 2 * InterruptModeration::kLongestLargeGap);
            now = moderation.deadline();
            ASSERT_TRUE(moderation.is_due(now, 0));
        }
        moderation.told(now, 0);
    }
    EXPECT_LE(waits, 12);
}

TEST(InterruptModeration, TellsOfASmallRequestAmongLargeOnesAtOnce) {
    InterruptModeration moderation;
    InterruptModeration::Clock::time_point now{std::chrono::seconds{1}};
    for (int i = 0; i < 100; ++i) {
        now += std::chrono::milliseconds{8};
        moderation.took(now, 8, 8ULL << 20);
        moderation.finished(now, 8, false);
        moderation.told(now, 0);
    }
    moderation.took(now, 2, 1 << 20);
    moderation.finished(now, 1, false);
    EXPECT_FALSE(moderation.is_due(now, 1));
    moderation.finished(now, 1, true);
    EXPECT_TRUE(moderation.is_due(now, 0));
    moderation.told(now, 0);
    moderation.finished(now, 1, false);
    EXPECT_FALSE(moderation.is_due(now, 0));
}

TEST(InterruptModeration, SleepsWhileLargeRequestsAreDoneAndLooksForSmallOnes) {
    InterruptModeration moderation;
    InterruptModeration::Clock::time_point now{std::chrono::seconds{1}};
    const auto serve = [&](std::uint64_t bytes) {
        for (int i = 0; i < 100; ++i) { // Eight at a time, one a millisecond.
            now += std::chrono::milliseconds{8};
            moderation.took(now, 8, 8 * bytes);
            moderation.finished(now, 8, false);
            moderation.told(now, 0);
        }
        moderation.took(now, 8, 8 * bytes);
        moderation.finished(now, 1, false);
    };
    serve(1 << 20);
    EXPECT_TRUE(moderation.is_for_sleeping());
    EXPECT_GT(moderation.patience(), microseconds{1500}); // until the next one is done, too
    EXPECT_FALSE(moderation.is_due(moderation.deadline() - microseconds{1}, 7));
    EXPECT_TRUE(moderation.is_due(moderation.deadline(), 7));
    EXPECT_LE(moderation.deadline() - now, InterruptModeration::kLongestLargeHold);
    moderation.told(now, 0);
    serve(512);
    EXPECT_FALSE(moderation.is_for_sleeping());
    EXPECT_LE(moderation.patience(), InterruptModeration::kLongestGap);
    EXPECT_EQ(moderation.doorbell_after(now), 1U);
}

TEST(InterruptModeration, DoesNotWaitForTheLastWhileTheHostWorks) {
    InterruptModeration moderation;
    const InterruptModeration::Clock::time_point now{std::chrono::seconds{1}};
    moderation.took(now, 32, 32 * kBytes);
    moderation.finished(now, 32, false);
    moderation.told(now, 0);
    moderation.took(now, 32, 32 * kBytes);
    moderation.finished(now, 15, false);
    EXPECT_FALSE(moderation.is_due(now, 17));
    moderation.finished(now, 1, false);
    EXPECT_TRUE(moderation.is_due(now, 16));
}

TEST(InterruptModeration, HasNothingToTellWhenNothingIsDone) {
    InterruptModeration moderation;
    const InterruptModeration::Clock::time_point now{std::chrono::seconds{1}};
    EXPECT_FALSE(moderation.is_due(now, 0));
    moderation.took(now, 3, 3 * kBytes);
    EXPECT_FALSE(moderation.is_due(now + std::chrono::hours{1}, 3));
    EXPECT_FALSE(moderation.holds_any());
    moderation.finished(now, 1, false);
    moderation.reset();
    EXPECT_FALSE(moderation.holds_any());
}

TEST(InterruptModerationThatIsOff, NothingWaits) {
    using namespace std::chrono_literals;
    for (const std::uint64_t bytes : {std::uint64_t{4096}, std::uint64_t{1} << 20U}) {
        InterruptModeration moderation(false);
        InterruptModeration::Clock::time_point now{1h};
        for (int i = 0; i < 1000; ++i) {
            now += 10us;
            moderation.took(now, 8, 8 * bytes);
            EXPECT_FALSE(moderation.is_due(now, 8)) << "nothing is done";
            moderation.finished(now, 1, bytes < InterruptModeration::kLargeBytes);
            EXPECT_TRUE(moderation.is_due(now, 7));
            moderation.told(now, 7);
            EXPECT_EQ(moderation.doorbell_after(now), 1U);
        }
        moderation.reset();
        moderation.finished(now, 1, true);
        EXPECT_TRUE(moderation.is_due(now, 1)) << "a reset does not switch it on";
    }
}

} // namespace
} // namespace vmm::devices::testing
