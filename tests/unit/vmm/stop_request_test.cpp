#include "vmm/stop_request.hpp"

#include <gtest/gtest.h>
#include <poll.h>

#include <array>
#include <csignal>
#include <thread>
#include <vector>

namespace vmm {
namespace {

bool is_readable(int fd) {
    pollfd ready{fd, POLLIN, 0};
    return ::poll(&ready, 1, 0) == 1;
}

TEST(StopRequest, IsNotMadeAtFirst) {
    const StopRequest stop;
    EXPECT_FALSE(stop.is_requested());
    EXPECT_FALSE(is_readable(stop.fd()));
}

TEST(StopRequest, MakesItsDescriptorReadable) {
    StopRequest stop;
    stop.request(ExitReason::kPowerOff);
    EXPECT_TRUE(stop.is_requested());
    EXPECT_EQ(stop.reason(), ExitReason::kPowerOff);
    EXPECT_TRUE(is_readable(stop.fd()));
}

TEST(StopRequest, FirstReasonWins) {
    StopRequest stop;
    stop.request(ExitReason::kReboot);
    stop.request(ExitReason::kCrash);
    stop.request_for_failure();
    EXPECT_EQ(stop.reason(), ExitReason::kReboot);
}

TEST(StopRequest, ForAFailureCountsAsARequest) {
    StopRequest stop;
    stop.request_for_failure();
    stop.request(ExitReason::kPowerOff);
    EXPECT_TRUE(stop.is_requested());
    EXPECT_TRUE(is_readable(stop.fd()));
}

TEST(StopRequest, OfManyThreadsHasOneReason) {
    constexpr std::array kReasons{ExitReason::kPowerOff, ExitReason::kReboot, ExitReason::kCrash, ExitReason::kSignal};
    StopRequest stop;
    {
        std::vector<std::jthread> threads;
        for (const ExitReason reason : kReasons) {
            threads.emplace_back([&stop, reason] { stop.request(reason); });
        }
    }
    const ExitReason reason = stop.reason();
    stop.request(ExitReason::kStopped);
    EXPECT_EQ(stop.reason(), reason);
    EXPECT_NE(reason, ExitReason::kStopped);
}

StopRequest* stop_of_handler = nullptr;

TEST(StopRequest, MayComeFromASignalHandler) {
    StopRequest stop;
    stop_of_handler = &stop;
    struct sigaction action {};
    struct sigaction before {};
    action.sa_handler = [](int) { stop_of_handler->request(ExitReason::kSignal); };
    ASSERT_EQ(::sigaction(SIGUSR1, &action, &before), 0);
    ::raise(SIGUSR1);
    ::sigaction(SIGUSR1, &before, nullptr);
    EXPECT_EQ(stop.reason(), ExitReason::kSignal);
    EXPECT_TRUE(is_readable(stop.fd()));
}

TEST(ExitReason, HasTheNamesOfTheReport) {
    EXPECT_EQ(to_string(ExitReason::kPowerOff), "poweroff");
    EXPECT_EQ(to_string(ExitReason::kReboot), "reboot");
    EXPECT_EQ(to_string(ExitReason::kCrash), "crash");
    EXPECT_EQ(to_string(ExitReason::kSignal), "signal");
    EXPECT_EQ(to_string(ExitReason::kStopped), "stopped");
}

} // namespace
} // namespace vmm
