#include "vmm/control/actions.hpp"

#include <pthread.h>

#include <utility>

#include "kvm/host/thread.hpp"

namespace vmm::control {

Actions::Actions() : thread_(start_thread("the control socket", [this] { body(); })) {}

Actions::~Actions() {
    {
        const std::lock_guard hold(lock_);
        ending_ = true;
    }
    changed_.notify_all();
    thread_.join();
}

bool Actions::add(std::function<void()> action) {
    {
        const std::lock_guard hold(lock_);
        if (waiting_.size() >= kMostWaiting) {
            return false;
        }
        waiting_.push_back(std::move(action));
    }
    changed_.notify_all();
    return true;
}

void Actions::body() {
    ::pthread_setname_np(::pthread_self(), "control-action");
    std::unique_lock hold(lock_);
    while (true) {
        changed_.wait(hold, [this] { return ending_ || !waiting_.empty(); });
        if (ending_) {
            return;
        }
        const std::function<void()> action = std::move(waiting_.front());
        waiting_.pop_front();
        hold.unlock();
        action();
        hold.lock();
    }
}

} // namespace vmm::control
