// Threads that run behind all others.
#pragma once

#include <optional>
#include <stop_token>

namespace vmm::prefault {

/// Gives the calling thread nice 19, and so also the threads that it starts afterwards. If `stop` is requested, the
/// thread gets the priority of the process's first thread, so that it can end without waiting behind all others. That
/// needs the right to raise a priority (CAP_SYS_NICE, RLIMIT_NICE); without it the thread stays at nice 19.
class LowPriority {
  public:
    explicit LowPriority(const std::stop_token& stop);
    LowPriority(const LowPriority&) = delete;
    LowPriority& operator=(const LowPriority&) = delete;

  private:
    struct Hurry {
        unsigned thread;
        void operator()() const noexcept;
    };
    std::optional<std::stop_callback<Hurry>> hurry_;
};

} // namespace vmm::prefault
