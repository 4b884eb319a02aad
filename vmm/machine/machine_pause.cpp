#include "vmm/machine/machine_pause.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/text.hpp"
#include "vmm/machine.hpp"

namespace vmm {

namespace {

std::string in_seconds(std::chrono::milliseconds time) {
    return vmm::format("{} s", std::chrono::duration<double>(time).count());
}

} // namespace

void MachinePause::pause(std::chrono::milliseconds within) {
    gate_.check_thread();
    const Deadline deadline =
        std::chrono::steady_clock::now() + std::min<std::chrono::milliseconds>(within, std::chrono::hours(24));
    std::unique_lock hold(lock_);
    if (!changed_.wait_until(hold, deadline, [this] { return !is_under_way_; })) {
        throw PauseError("cannot pause the machine within " + in_seconds(within) +
                         ": another pause has been under way all the time (wait for its end, or allow more time)");
    }
    if (closed_) {
        throw UsageError("cannot pause the machine: it has ended");
    }
    is_under_way_ = true;
    is_resumed_ = false;
    struct Turn {
        ~Turn() {
            if (!hold.owns_lock()) {
                hold.lock();
            }
            pause.is_under_way_ = false;
            pause.changed_.notify_all();
        }
        MachinePause& pause;
        std::unique_lock<std::mutex>& hold;
    };
    const Turn turn{*this, hold};
    hold_all(hold, within, deadline);
}

/// The lock must be held; it is released while this waits.
void MachinePause::hold_all(std::unique_lock<std::mutex>& hold, std::chrono::milliseconds within, Deadline deadline) {
    const bool was_paused = paused_;
    const auto fail = [&](const std::string& why) {
        if (!was_paused) {
            devices_.resume();
            gate_.resume();
        }
        throw PauseError("cannot pause the machine within " + in_seconds(within) + ": " + why +
                         (was_paused ? "" : "; the guest goes on"));
    };
    hold.unlock();
    const bool vcpus_wait = gate_.pause(deadline);
    hold.lock();
    if (is_ending()) {
        return;
    }
    if (is_resumed_) {
        gate_.resume(); // It may have been resumed before it was paused.
        return;
    }
    if (!vcpus_wait) {
        fail("a vCPU does not come back from what it does for the guest (see whether a device's own access waits for "
             "something, or allow more time)");
    }
    devices_.pause();
    if (have_devices_begun_) {
        hold.unlock();
        const std::vector<std::string> busy = devices_.wait_until_paused(deadline);
        hold.lock();
        if (is_ending() || is_resumed_) {
            return;
        }
        if (!busy.empty()) {
            fail("the host has not finished what it does for " + joined(busy) +
                 " (see whether what the device stands on still answers, or allow more time)");
        }
    }
    paused_ = true;
}

void MachinePause::resume() {
    const std::lock_guard hold(lock_);
    if (is_looked_at_) {
        throw UsageError(
            "cannot resume the machine: a snapshot of it is being written, or it is being migrated (wait for that, or "
            "cancel its job)");
    }
    devices_.reclaim_host(); // A guest that was given away to another process may never have run there.
    is_resumed_ = true;
    paused_ = false;
    if (!closed_) {
        devices_.resume();
        gate_.resume();
    }
}

MachinePause::Looking::Looking(MachinePause& pause, const std::string& tried) : pause_(pause) {
    std::unique_lock hold(pause.lock_);
    pause.changed_.wait(hold, [&pause] { return !pause.is_under_way_ || pause.is_ending(); });
    if (!pause.has_begun_ || !pause.paused_ || pause.is_ending()) {
        throw UsageError("cannot " + tried +
                         ": the machine is not paused, because it was resumed, has ended or has not begun "
                         "(pause it while it runs)");
    }
    pause.is_under_way_ = true;
    pause.is_looked_at_ = true;
}

MachinePause::Looking::~Looking() {
    const std::lock_guard hold(pause_.lock_);
    pause_.is_under_way_ = false;
    pause_.is_looked_at_ = false;
    pause_.changed_.notify_all();
}

void MachinePause::start_devices(StopRequest& stop, const Sandbox& sandbox) {
    const std::lock_guard hold(lock_);
    have_devices_begun_ = true;
    devices_.pause(); // This comes before they exist, so they begin paused.
    devices_.start(stop, sandbox);
}

void MachinePause::let_devices_begin() {
    const std::lock_guard hold(lock_);
    if (!paused_ && !is_under_way_ && !closed_) { // Otherwise the caller of resume() lets them go on.
        devices_.resume();
    }
}

void MachinePause::open(std::size_t vcpus, PauseGate::KickAll kick_all) {
    const std::lock_guard hold(lock_);
    gate_.open(vcpus, std::move(kick_all));
    has_begun_ = true;
}

void MachinePause::close() {
    std::unique_lock hold(lock_);
    if (std::exchange(closed_, true)) {
        return;
    }
    paused_ = false;
    gate_.close();
    devices_.end_waiting();
    changed_.wait(hold, [this] { return !is_under_way_; });
}

} // namespace vmm
