#include "kvm/host/interval_timer.hpp"

#include <sys/timerfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

#include "kvm/host/error.hpp"

namespace vmm {

IntervalTimer::IntervalTimer(double seconds) : fd_(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)) {
    if (!fd_) {
        throw_errno(errno, "make a timer");
    }
    itimerspec interval{};
    interval.it_interval.tv_sec = static_cast<time_t>(seconds);
    interval.it_interval.tv_nsec =
        static_cast<long>((seconds - static_cast<double>(interval.it_interval.tv_sec)) * 1e9);
    interval.it_value = interval.it_interval;
    if (::timerfd_settime(fd_.get(), 0, &interval, nullptr) != 0) {
        throw_errno(errno, "start a timer");
    }
}

void IntervalTimer::clear() const noexcept {
    std::uint64_t expirations = 0;
    [[maybe_unused]] const ssize_t ignored = ::read(fd_.get(), &expirations, sizeof expirations);
}

} // namespace vmm
