// A heartbeat of Linux. It reads CLOCK_MONOTONIC a thousand times a second. At its end it prints how late the reads
// were, and whether the clock ever went back. It is linked statically, because it goes into the guest's initramfs.
//
//   heartbeat_tool [SECONDS]    ends after SECONDS of that clock (default: never), or by SIGTERM, SIGINT or SIGHUP
//
// Its first line is `heartbeat begins`, its last one:
//   heartbeat beats=10000 late_p50_us=61.43 late_p99_us=98.30 late_max_us=412.88 backward=0
// At SIGUSR1 it prints that line at once, and counts anew. It exits with 0, or with 1 if the clock went back.
#include <time.h> // NOLINT(modernize-deprecated-headers): clock_nanosleep() is POSIX's.
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "vmm/guest/heartbeat.hpp"

namespace {

constexpr std::uint64_t kNanosecondsOfMs = 1'000'000;
constexpr std::uint64_t kNanosecondsOfSecond = 1'000'000'000;

volatile std::sig_atomic_t has_to_end = 0;
volatile std::sig_atomic_t has_to_tell = 0;

std::uint64_t now() {
    timespec time{};
    ::clock_gettime(CLOCK_MONOTONIC, &time);
    return static_cast<std::uint64_t>(time.tv_sec) * kNanosecondsOfSecond + static_cast<std::uint64_t>(time.tv_nsec);
}

void sleep_until(std::uint64_t when) {
    const timespec time{static_cast<time_t>(when / kNanosecondsOfSecond),
                        static_cast<long>(when % kNanosecondsOfSecond)};
    ::clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, nullptr);
}

void say(std::string_view line) {
    const std::string text = std::string(line) + "\n";
    [[maybe_unused]] const ssize_t written = ::write(STDOUT_FILENO, text.data(), text.size());
}

} // namespace

int main(int argc, char** argv) {
    char* rest = nullptr;
    const double seconds = argc > 1 ? std::strtod(argv[1], &rest) : 0;
    if (argc > 2 || (argc == 2 && (*rest != '\0' || !(seconds > 0 && seconds < 1e9)))) {
        std::fprintf(stderr, "heartbeat_tool: see the head of its source\n");
        return 2;
    }
    for (const int number : {SIGTERM, SIGINT, SIGHUP}) {
        std::signal(number, [](int) { has_to_end = 1; });
    }
    std::signal(SIGUSR1, [](int) { has_to_tell = 1; });

    const std::uint64_t begin = now();
    const std::uint64_t end =
        seconds > 0 ? begin + static_cast<std::uint64_t>(seconds * 1e9) : std::uint64_t{UINT64_MAX};
    vmm::guest::Heartbeat heartbeat(kNanosecondsOfMs, begin);
    bool went_back = false;
    say("heartbeat begins");
    const auto tell = [&] {
        const vmm::guest::HeartbeatReport report = heartbeat.take(now());
        went_back = went_back || report.backward != 0;
        say(vmm::guest::heartbeat_line(report).text());
    };
    for (std::uint64_t time = begin; has_to_end == 0 && time < end; time = now()) {
        if (!heartbeat.look(time)) {
            sleep_until(heartbeat.due());
        }
        if (has_to_tell != 0) {
            has_to_tell = 0;
            tell();
        }
    }
    tell();
    return went_back ? 1 : 0;
}
