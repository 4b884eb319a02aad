#include "vmm/output/stop_on_signals.hpp"

#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>

namespace vmm {

namespace {

std::atomic<StopOnSignals*> current{nullptr};
static_assert(std::atomic<StopOnSignals*>::is_always_lock_free, "for use in a signal handler");

std::atomic<void (*)()> last_act{nullptr};
std::atomic<std::int64_t> first_signal_ms{0}; ///< since the host started; 0 if none has come
static_assert(std::atomic<void (*)()>::is_always_lock_free && std::atomic<std::int64_t>::is_always_lock_free,
              "for use in a signal handler");

/// timeout(1) and shells send one request as two signals: one to the process, and one to its group.
constexpr std::int64_t kOneRequestMs = 100;
constexpr int kStatusOfSecond = 4; ///< the same as after the first signal (docs/report.md)

std::int64_t now_ms() {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return (std::int64_t{now.tv_sec} * 1000) + (now.tv_nsec / 1'000'000) + 1;
}

/// Ends the process if this is a second request, from somebody who does not want to wait for the stop.
void end_if_second() {
    const std::int64_t now = now_ms();
    std::int64_t first = 0;
    if (first_signal_ms.compare_exchange_strong(first, now) || now - first < kOneRequestMs) {
        return;
    }
    perform_last_act();
    ::_exit(kStatusOfSecond);
}

std::atomic<int> status_to_exit_with{0};
static_assert(std::atomic<int>::is_always_lock_free, "for use in a signal handler");

void on_exit_signal(int /*signal*/) {
    ::_exit(status_to_exit_with.load());
}

using Actions = std::array<struct sigaction, kStopSignals.size()>;

/// Installs `handler`, except for a signal that is ignored. Returns the actions from before.
Actions handle(void (*handler)(int)) {
    Actions before{};
    struct sigaction action {};
    action.sa_handler = handler;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    for (std::size_t i = 0; i < kStopSignals.size(); ++i) {
        ::sigaction(kStopSignals[i], nullptr, &before[i]);
        if (before[i].sa_handler != SIG_IGN) {
            ::sigaction(kStopSignals[i], &action, nullptr);
        }
    }
    return before;
}

void restore(const Actions& before) {
    for (std::size_t i = 0; i < kStopSignals.size(); ++i) {
        ::sigaction(kStopSignals[i], &before[i], nullptr);
    }
}

} // namespace

void set_last_act(void (*act)()) noexcept {
    last_act.store(act);
}

void perform_last_act() noexcept {
    if (void (*const act)() = last_act.load(); act != nullptr) {
        act();
    }
}

ExitOnSignals::ExitOnSignals(int status) {
    status_to_exit_with.store(status);
    before_ = handle(on_exit_signal);
}

ExitOnSignals::~ExitOnSignals() {
    restore(before_);
}

void StopOnSignals::on_signal(int /*signal*/) {
    const int error_number = errno;
    end_if_second();
    if (StopOnSignals* const self = current.load(); self != nullptr) {
        self->stop_.request(ExitReason::kSignal);
        self->signalled_.signal();
    }
    errno = error_number;
}

StopOnSignals::StopOnSignals(StopRequest& stop) : stop_(stop) {
    first_signal_ms.store(0);
    current.store(this);
    before_ = handle(on_signal);
}

StopOnSignals::~StopOnSignals() {
    restore(before_);
    current.store(nullptr);
}

} // namespace vmm
