#include "vmm/machine/embedder.hpp"

#include <utility>

namespace vmm {

Embedder::Embedder(LogSink log, StopRequest& stop) : log_(std::move(log)), stop_(stop) {}

void Embedder::log(LogLevel level, const std::string& line) {
    if (!log_) {
        return;
    }
    try {
        log_(level, line);
    } catch (...) {
        if (!guest_runs_) {
            throw;
        }
        note_failure(std::current_exception());
    }
}

void Embedder::warn(const std::string& line) {
    const std::lock_guard hold(warning_);
    if (!has_parted_) {
        log(LogLevel::kWarning, line);
    }
}

void Embedder::note_failure(std::exception_ptr thrown) noexcept {
    {
        const std::lock_guard hold(failure_lock_);
        if (!failure_) {
            failure_ = std::move(thrown);
        }
    }
    stop_.request_for_failure();
}

void Embedder::rethrow_failure() {
    const std::lock_guard hold(failure_lock_);
    if (failure_) {
        std::rethrow_exception(failure_);
    }
}

void Embedder::part() {
    const std::lock_guard hold(warning_);
    has_parted_ = true;
}

} // namespace vmm
