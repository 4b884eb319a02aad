#include "devices/virtio/memory_work.hpp"

#include <sys/epoll.h>

#include <cassert>

namespace vmm::devices::virtio {

void MemoryWork::ask(const MemoryChange& change) {
    {
        const std::lock_guard hold(mutex_);
        assert(stage_ == Stage::kNone);
        stage_ = Stage::kAsked;
        change_ = change;
    }
    asked_.notify_one();
}

bool MemoryWork::is_under_way() const noexcept {
    const std::lock_guard hold(mutex_);
    return stage_ != Stage::kNone;
}

std::optional<MemoryOutcome> MemoryWork::take_outcome() {
    const std::lock_guard hold(mutex_);
    if (stage_ != Stage::kOver) {
        return std::nullopt;
    }
    over_.clear();
    stage_ = Stage::kNone;
    return outcome_;
}

void MemoryWork::cancel() noexcept {
    const std::lock_guard hold(mutex_);
    if (stage_ == Stage::kAsked) {
        stage_ = Stage::kOver;
        outcome_ = MemoryOutcome::kPutOff;
        over_.signal();
    }
}

Source MemoryWork::source() const noexcept {
    return {over_.fd(), EPOLLIN};
}

std::optional<MemoryChange> MemoryWork::wait(const std::stop_token& stop) {
    std::unique_lock hold(mutex_);
    if (!asked_.wait(hold, stop, [this] { return stage_ == Stage::kAsked; })) {
        return std::nullopt;
    }
    return change_;
}

bool MemoryWork::begin() noexcept {
    const std::lock_guard hold(mutex_);
    if (stage_ != Stage::kAsked) {
        return false;
    }
    stage_ = Stage::kBegun;
    return true;
}

void MemoryWork::finish(MemoryOutcome outcome) noexcept {
    const std::lock_guard hold(mutex_);
    assert(stage_ == Stage::kBegun);
    stage_ = Stage::kOver;
    outcome_ = outcome;
    over_.signal();
}

} // namespace vmm::devices::virtio
