// How long something took.
#pragma once

#include <chrono>

namespace vmm {

/// The seconds from `start` to `end`; negative if `end` is earlier.
[[nodiscard]] inline double seconds_between(std::chrono::steady_clock::time_point start,
                                            std::chrono::steady_clock::time_point end) noexcept {
    return std::chrono::duration<double>(end - start).count();
}

/// The seconds from `start` until now.
[[nodiscard]] inline double seconds_since(std::chrono::steady_clock::time_point start) noexcept {
    return seconds_between(start, std::chrono::steady_clock::now());
}

} // namespace vmm
