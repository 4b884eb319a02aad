// Requests to stop.
#pragma once

#include <memory>
#include <stop_token>

#include "support/host_waiting.hpp"

namespace vmm::testing {

/// A token whose stop has been requested already.
[[nodiscard]] inline std::stop_token stop_requested_already() {
    const auto source = std::make_unique<std::stop_source>(); // on the heap: gcc 12 takes a local one for uninitialised
    source->request_stop();
    return source->get_token();
}

/// Waits for a stop to be requested; false if that does not happen.
[[nodiscard]] inline bool is_stopped_at_last(const std::stop_token& stop) {
    return eventually([&stop] { return stop.stop_requested(); });
}

} // namespace vmm::testing
