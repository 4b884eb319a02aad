// How a thread of ours is started.
#pragma once

#include <functional>
#include <string_view>
#include <thread>

namespace vmm {

/// Starts a thread whose signals are blocked from its first instruction on. `whose` is for the message: "vCPU 3".
/// Throws Error if the host cannot make a thread.
std::thread start_thread(std::string_view whose, std::function<void()> body);

} // namespace vmm
