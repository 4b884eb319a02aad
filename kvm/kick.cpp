#include "kvm/kick.hpp"

#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <ctime>

#include "kvm/host/error.hpp"
#include "kvm/kick_signal.hpp"

namespace vmm::kvm {

void kick(pthread_t thread) noexcept {
    ::pthread_kill(thread, kick_signal());
}

RegularKicks::RegularKicks(std::chrono::seconds interval) {
    sigevent event{};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = kick_signal();
    event._sigev_un._tid = static_cast<pid_t>(::syscall(SYS_gettid)); // glibc before 2.38 has no better name for it
    if (::timer_create(CLOCK_MONOTONIC, &event, &timer_) != 0) {
        throw_errno(errno, "make a timer for a vCPU's thread",
                    {{EAGAIN, "raise the limit on pending signals: `ulimit -i`"}});
    }
    itimerspec times{};
    times.it_interval.tv_sec = interval.count();
    times.it_value = times.it_interval;
    ::timer_settime(timer_, 0, &times, nullptr);
}

RegularKicks::~RegularKicks() {
    ::timer_delete(timer_);
}

double cpu_seconds_of_this_thread() noexcept {
    timespec used{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    return static_cast<double>(used.tv_sec) + static_cast<double>(used.tv_nsec) / 1e9;
}

bool was_kicked_within(std::chrono::milliseconds time) noexcept {
    sigset_t only_kick;
    sigemptyset(&only_kick);
    sigaddset(&only_kick, kick_signal());
    timespec wait{};
    wait.tv_sec = static_cast<time_t>(time.count() / 1000);
    wait.tv_nsec = static_cast<long>(time.count() % 1000 * 1'000'000);
    return ::sigtimedwait(&only_kick, nullptr, &wait) >= 0;
}

void discard_pending_kicks() noexcept {
    // Several real-time signals may be queued. The loop is bounded because other threads may go on sending.
    constexpr int kMost = 1000;
    for (int i = 0; i < kMost && was_kicked_within(std::chrono::milliseconds(0)); ++i) {
    }
}

} // namespace vmm::kvm
