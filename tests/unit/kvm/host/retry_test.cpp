// Interrupted calls are repeated, but not for ever.
#include "kvm/host/retry.hpp"

#include <gtest/gtest.h>

#include <cerrno>
#include <chrono>
#include <stop_token>

namespace vmm {
namespace {

TEST(Retries, EndAndTheirPausesTakeLessThanASecondTogether) {
    Retries retries;
    std::chrono::milliseconds sum{0};
    unsigned tries = 1;
    while (const auto pause = retries.next()) {
        sum += *pause;
        ASSERT_LE(++tries, Retries::kMostTries);
    }
    EXPECT_EQ(tries, Retries::kMostTries);
    EXPECT_LT(sum, std::chrono::seconds(1));
    EXPECT_GT(sum, std::chrono::milliseconds(500)) << "a shortage that passes is waited out";
}

TEST(Retries, AtFirstAreMadeAtOnce) {
    Retries retries;
    EXPECT_EQ(retries.next(), std::chrono::milliseconds(0));
}

TEST(Retries, AreAsNewWhenForgotten) {
    Retries retries;
    while (retries.next()) {
    }
    retries.forget();
    EXPECT_EQ(retries.next(), std::chrono::milliseconds(0));
}

TEST(Retries, EndWhereAStopIsRequested) {
    std::stop_source source;
    Retries retries;
    EXPECT_TRUE(retries.again(source.get_token()));
    source.request_stop();
    EXPECT_FALSE(retries.again(source.get_token()));
}

TEST(Uninterrupted, CallIsMadeAgainAndItsAnswerGiven) {
    int calls = 0;
    const long answer = uninterrupted([&]() -> long {
        errno = EINTR;
        return ++calls < 3 ? -1 : 7;
    });
    EXPECT_EQ(answer, 7);
    EXPECT_EQ(calls, 3);
}

TEST(Uninterrupted, CallThatIsInterruptedForEverIsGivenUp) {
    unsigned calls = 0;
    const int answer = uninterrupted([&] {
        ++calls;
        errno = EINTR;
        return -1;
    });
    EXPECT_EQ(answer, -1);
    EXPECT_EQ(calls, Retries::kMostTries);
}

TEST(Uninterrupted, CallThatFailsIsNotMadeAgain) {
    unsigned calls = 0;
    const int answer = uninterrupted([&] {
        ++calls;
        errno = EIO;
        return -1;
    });
    EXPECT_EQ(answer, -1);
    EXPECT_EQ(calls, 1U);
}

} // namespace
} // namespace vmm
