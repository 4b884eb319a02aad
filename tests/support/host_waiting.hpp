// Waiting for events in tests. No test asserts how long something takes: scripts/benchmark prints such figures.
#pragma once

#include <algorithm>
#include <chrono>
#include <thread>

namespace vmm::testing {

/// How long a test waits for an expected event. This is only a bound for hangs: beside twenty other tests on two
/// processors everything takes ten times as long and more. The time limits in tests/CMakeLists.txt are longer still.
inline constexpr std::chrono::minutes kPatience{5};

/// Waits until `condition` is true. Gives up after kPatience and returns false.
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
