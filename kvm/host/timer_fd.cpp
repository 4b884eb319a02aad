#include "kvm/host/timer_fd.hpp"

#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>

#include "kvm/host/error.hpp"

namespace vmm {

TimerFd::TimerFd() : fd_(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)) {
    if (!fd_) {
        throw_errno(errno, "make a timer");
    }
}

TimerFd::TimerFd(double seconds) : TimerFd() {
    itimerspec interval{};
    interval.it_interval.tv_sec = static_cast<time_t>(seconds);
    interval.it_interval.tv_nsec =
        static_cast<long>((seconds - static_cast<double>(interval.it_interval.tv_sec)) * 1e9);
    interval.it_value = interval.it_interval;
    if (::timerfd_settime(fd_.get(), 0, &interval, nullptr) != 0) {
        throw_errno(errno, "start a timer");
    }
}

void TimerFd::set(Clock::time_point time) const noexcept {
    // A time of 0 would stop the timer.
    const auto since_boot = std::max<Clock::duration>(time.time_since_epoch(), std::chrono::nanoseconds{1});
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(since_boot);
    itimerspec when{};
    when.it_value.tv_sec = seconds.count();
    when.it_value.tv_nsec = std::chrono::nanoseconds(since_boot - seconds).count();
    static_cast<void>(::timerfd_settime(fd_.get(), TFD_TIMER_ABSTIME, &when, nullptr));
}

void TimerFd::clear() const noexcept {
    std::uint64_t expirations = 0;
    [[maybe_unused]] const ssize_t ignored = ::read(fd_.get(), &expirations, sizeof expirations);
}

} // namespace vmm
