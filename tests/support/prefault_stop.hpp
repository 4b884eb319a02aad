// Requests to stop.
#pragma once

#include <chrono>
#include <memory>
#include <stop_token>
#include <thread>

namespace vmm::testing {

/// A token by which a stop is requested already.
[[nodiscard]] inline std::stop_token stop_requested_already() {
    const auto source = std::make_unique<std::stop_source>(); // On the heap: gcc 12 sees a local one uninitialised.
    source->request_stop();
    return source->get_token();
}

/// Waits for a stop to be requested; false if that does not happen within a time far beyond what it can take.
[[nodiscard]] inline bool is_stopped_soon(const std::stop_token& stop) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (!stop.stop_requested() && std::chrono::steady_clock::now() < deadline) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return stop.stop_requested();
}

} // namespace vmm::testing
