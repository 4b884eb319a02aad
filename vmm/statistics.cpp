#include "vmm/statistics.hpp"

namespace vmm {

std::string_view to_string(RunState state) noexcept {
    switch (state) {
    case RunState::kReady:
        return "ready";
    case RunState::kRunning:
        return "running";
    case RunState::kPaused:
        return "paused";
    case RunState::kEnded:
        return "ended";
    }
    return "?";
}

} // namespace vmm
