// Threads that stay behind everybody else's.
#pragma once

#include <optional>
#include <stop_token>

namespace vmm::prefault {

/// Makes the calling thread nice 19, and the threads that it starts from then on. When `stop` is requested the thread
/// gets the priority of the process's first thread, so that it need not wait behind everybody to end. That takes the
/// right to raise a priority (CAP_SYS_NICE, RLIMIT_NICE); without it the thread stays nice.
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
