// Limits the rate of some work.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <stop_token>

namespace vmm::prefault {

/// Limits the total rate of several threads to a number of bytes a second.
///
/// Threads: any number at the same time.
class Pace {
  public:
    using Clock = std::chrono::steady_clock;

    /// If `bytes_per_second` is 0, there is no limit.
    explicit Pace(std::uint64_t bytes_per_second) noexcept : bytes_per_second_(bytes_per_second) {}

    /// Counts `bytes` that are done at `now`, and returns the time at which the next work may begin. That is at once if
    /// the recent work was below the limit. Time in which nothing was done is not saved up.
    [[nodiscard]] Clock::time_point next_after(std::uint64_t bytes, Clock::time_point now);

    /// Like next_after() with the present time, but waits until then, or until `stop` is requested.
    void wait_after(std::uint64_t bytes, const std::stop_token& stop);

  private:
    std::uint64_t bytes_per_second_;
    std::mutex lock_;
    std::condition_variable_any stopped_;
    Clock::time_point next_{}; ///< the time at which all counted bytes would be done at the full rate
};

} // namespace vmm::prefault
