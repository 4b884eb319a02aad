// When a device that answers at once wants to be told of what comes next.
#pragma once

#include <chrono>

namespace vmm::devices::virtio {

/// A doorbell costs the guest an exit. In a stream of requests, a device that asks for the doorbell with each next one
/// has one exit for every two or three, because it is as fast as the driver. So it asks for a later one, and looks by
/// itself if that does not come in time. How many are waited for is learnt: one more each time they come, and half of
/// those that came each time they do not. A driver with one request at a time is never waited for.
///
/// Time is given by the caller. Threads: one.
class DoorbellModeration {
  public:
    using Clock = std::chrono::steady_clock;
    using Duration = Clock::duration;

    static constexpr unsigned kMost = 16;
    /// Between two requests of a stream.
    static constexpr Duration kLongestGap = std::chrono::microseconds{500};
    /// How long a request may wait for those after it.
    static constexpr Duration kLongestWait = std::chrono::milliseconds{2};

    /// The device has taken all requests that there were, `count` of them since the last call, and is about to ask for
    /// a doorbell at `now`. Returns with how many more requests it is worth its exit, 1 to kMost. If it is more than 1,
    /// deadline() is when to look whether fewer have come.
    [[nodiscard]] unsigned after(Clock::time_point now, unsigned count) noexcept;
    [[nodiscard]] Clock::time_point deadline() const noexcept { return deadline_; }

    /// The driver has reset the device.
    void reset() noexcept { *this = {}; }

  private:
    [[nodiscard]] bool is_stream(Clock::time_point now, unsigned count) noexcept;

    unsigned wanted_ = 1;
    Clock::time_point last_{};
    Clock::time_point deadline_{};
    Duration gap_ = kLongestGap; ///< between requests, a moving average
};

} // namespace vmm::devices::virtio
