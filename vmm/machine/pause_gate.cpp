#include "vmm/machine/pause_gate.hpp"

#include <utility>

#include "kvm/host/error.hpp"

namespace vmm {

namespace {

/// The gate that the vCPU of this thread passes; null in other threads.
thread_local const PauseGate* gate_of_this_thread = nullptr;

} // namespace

void PauseGate::open(std::size_t vcpus, KickAll kick_all) {
    const std::lock_guard hold(lock_);
    vcpus_ = vcpus;
    kick_all_ = std::move(kick_all);
}

void PauseGate::close() {
    const std::lock_guard hold(lock_);
    closed_ = true;
    wanted_.store(false);
    held_.store(false);
    kick_all_ = {};
    changed_.notify_all();
}

void PauseGate::check_thread() const {
    if (gate_of_this_thread == this) {
        throw UsageError(
            "cannot pause the machine from a device's own access: the vCPU would wait for itself (pause it "
            "from another thread)");
    }
}

bool PauseGate::pause(std::chrono::steady_clock::time_point deadline) {
    std::unique_lock hold(lock_);
    if (closed_) {
        return true;
    }
    wanted_.store(true, std::memory_order_release);
    if (!kick_all_) {
        return true;
    }
    // One kick is enough, because a kick before the entry ends the next entry at once. A kick is lost only by a vCPU
    // that is already on its way here.
    kick_all_();
    return changed_.wait_until(hold, deadline, [this] { return closed_ || !wanted_.load() || waiting_ == vcpus_; });
}

void PauseGate::resume() {
    const std::lock_guard hold(lock_);
    wanted_.store(false);
    changed_.notify_all();
}

void PauseGate::hold() {
    const std::lock_guard hold(lock_);
    if (!closed_ && kick_all_) {
        held_.store(true, std::memory_order_release);
        kick_all_();
    }
}

void PauseGate::let_go() {
    const std::lock_guard hold(lock_);
    held_.store(false);
    changed_.notify_all();
}

void PauseGate::note_vcpu_thread() noexcept {
    gate_of_this_thread = this;
}

void PauseGate::wait() {
    std::unique_lock hold(lock_);
    ++waiting_;
    changed_.notify_all();
    changed_.wait(hold, [this] { return closed_ || !is_shut(); });
    --waiting_;
}

} // namespace vmm
