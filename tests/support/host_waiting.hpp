// Waiting for events in tests. No test asserts how long something takes: scripts/benchmark prints such figures.
#pragma once

#include <algorithm>
#include <chrono>
#include <thread>

namespace vmm::testing {

/// How long a test waits for what has to come. This is a bound against hanging alone: with twenty others on two
/// processors everything takes ten times as long and more. The time limits in tests/CMakeLists.txt are longer still.
inline constexpr std::chrono::minutes kPatience{5};

/// Whether `condition` comes true. Gives up after kPatience.
template <typename Condition>
bool eventually(Condition condition) {
    const auto give_up = std::chrono::steady_clock::now() + kPatience;
    std::chrono::milliseconds pause{1};
    while (!condition()) {
        if (std::chrono::steady_clock::now() > give_up) {
            return false;
        }
        std::this_thread::sleep_for(pause);
        pause = std::min(pause * 2, std::chrono::milliseconds{16});
    }
    return true;
}

} // namespace vmm::testing
