// How fast something may be done.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <stop_token>

namespace vmm::prefault {

/// Keeps several threads together to so many bytes a second.
///
/// Threads: any, together.
class Pace {
  public:
    using Clock = std::chrono::steady_clock;

    /// `bytes_per_second` 0 sets no limit.
    explicit Pace(std::uint64_t bytes_per_second) noexcept : bytes_per_second_(bytes_per_second) {}

    /// Counts `bytes` that are done at `now`, and returns when the next may be begun: at once if less than was allowed
    /// was done lately. Time in which nothing was done is not saved up.
    [[nodiscard]] Clock::time_point next_after(std::uint64_t bytes, Clock::time_point now);

    /// The same for what is done now, and waits until then, or until `stop` is requested.
    void wait_after(std::uint64_t bytes, const std::stop_token& stop);

  private:
    std::uint64_t bytes_per_second_;
    std::mutex lock_;
    std::condition_variable_any stopped_;
    Clock::time_point next_{}; ///< when all that was counted would be done at the full rate
};

} // namespace vmm::prefault
