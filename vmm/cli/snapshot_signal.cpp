#include "vmm/cli/snapshot_signal.hpp"

#include <poll.h>
#include <pthread.h>

#include <array>
#include <atomic>
#include <cassert>
#include <cerrno>
#include <exception>
#include <string>
#include <utility>

#include "kvm/host/format.hpp"
#include "kvm/host/guest_address.hpp"
#include "kvm/host/thread.hpp"
#include "vmm/machine.hpp"

namespace vmm {

namespace {

std::atomic<const EventFd*> g_snapshot_wanted{nullptr};
static_assert(std::atomic<const EventFd*>::is_always_lock_free, "for use in a signal handler");

void on_snapshot_signal(int /*signal*/) {
    const int error_number = errno;
    if (const EventFd* const wanted = g_snapshot_wanted.load()) {
        wanted->signal();
    }
    errno = error_number;
}

} // namespace

SnapshotSignal::SnapshotSignal(int signal) : signal_(signal) {
    [[maybe_unused]] const EventFd* const other = g_snapshot_wanted.exchange(&arrived_);
    assert(other == nullptr);
    struct sigaction action {};
    action.sa_handler = on_snapshot_signal;
    action.sa_flags = SA_RESTART;
    ::sigaction(signal_, &action, &before_);
}

SnapshotSignal::~SnapshotSignal() {
    ::sigaction(signal_, &before_, nullptr);
    g_snapshot_wanted = nullptr;
}

SnapshotOnSignal::SnapshotOnSignal(Machine& machine, const SnapshotSignal& signal, SnapshotOptions options, Words words)
    : machine_(machine), signal_(signal), options_(std::move(options)), words_(std::move(words)),
      thread_(start_thread("the snapshot on a signal", [this] { body(); })) {}

SnapshotOnSignal::~SnapshotOnSignal() {
    stop_.request_stop();
    ending_.signal();
    thread_.join();
}

bool SnapshotOnSignal::wait_for(const EventFd& event) const {
    std::array<pollfd, 2> fds{{{ending_.fd(), POLLIN, 0}, {event.fd(), POLLIN, 0}}};
    while (true) {
        const int ready = ::poll(fds.data(), fds.size(), -1);
        if (ready > 0) {
            return (fds[0].revents & POLLIN) == 0;
        }
        if (ready < 0 && errno != EINTR && errno != EAGAIN && errno != ENOMEM) {
            return false;
        }
    }
}

void SnapshotOnSignal::body() noexcept {
    ::pthread_setname_np(::pthread_self(), "snapshot-signal");
    // `started_` is never cleared, because a guest starts only once.
    while (wait_for(signal_.arrived()) && wait_for(started_)) {
        signal_.arrived().clear();
        if (save()) {
            machine_.request_stop(ExitReason::kSignal);
            return;
        }
    }
}

bool SnapshotOnSignal::save() {
    const std::string tried = "the signal asked for a snapshot, and ";
    try {
        const SnapshotReport report = machine_.snapshot(options_, stop_.get_token());
        if (report.complete) {
            words_.say(format("vmm: the machine is saved in {} and ends: {} of memory, {} written in {:.2f} s\n",
                              options_.directory, format_bytes(report.memory_bytes), format_bytes(report.written_bytes),
                              report.total_seconds));
        } else {
            words_.say_error(tried + "the machine ended before it was whole: there is none in " + options_.directory);
        }
        return report.complete;
    } catch (const std::exception& error) {
        words_.say_error(tried + error.what() + "; the guest goes on");
        return false;
    }
}

} // namespace vmm
