#include "kvm/host/retry.hpp"

#include <algorithm>
#include <thread>

namespace vmm {

std::optional<std::chrono::milliseconds> Retries::next() noexcept {
    constexpr unsigned kAtOnce = 3;
    constexpr unsigned kLongestMilliseconds = 10;
    if (tries_ >= kMostTries) {
        return std::nullopt;
    }
    const unsigned pauses = tries_ > kAtOnce ? tries_ - kAtOnce : 0;
    ++tries_;
    return std::chrono::milliseconds(pauses == 0 ? 0 : std::min(1U << std::min(pauses - 1, 8U), kLongestMilliseconds));
}

bool Retries::again(const std::stop_token& stop) noexcept {
    const auto pause = next();
    if (!pause || stop.stop_requested()) {
        return false;
    }
    if (pause->count() > 0) {
        std::this_thread::sleep_for(*pause);
    }
    return !stop.stop_requested();
}

} // namespace vmm
