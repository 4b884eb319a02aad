// When to tell a driver of what is done.
#pragma once

#include <chrono>
#include <cstdint>

namespace vmm::devices::virtio {

/// Interrupt moderation: an interrupt costs a guest several exits, of which a driver that has many requests under way
/// needs one for many of them. The used ring is filled at once in any case; only the interrupt waits.
///
/// It waits while more is being done: until as many requests are done as came together the last times, or half of all
/// that is under way, or kMostHeld; and no longer than two of the usual distances between requests after the last of
/// them, nor kLongestHold. A driver with one request at a time is told at once: how many come together is found by
/// waiting for one more now and then, ever more rarely where none comes.
///
/// For small requests looking again and again is cheaper than going to sleep. Large ones are copied meanwhile, by
/// threads of the kernel's that need a processor: for those the device sleeps until deadline(), and half of what is
/// under way is only enough where it is most of what came together before.
///
/// Time is given by the caller. Threads: one.
class InterruptModeration {
  public:
    using Clock = std::chrono::steady_clock;
    using Duration = Clock::duration;

    static constexpr unsigned kMostHeld = 32;
    static constexpr Duration kLongestHold = std::chrono::milliseconds{4};
    static constexpr Duration kLongestGap = std::chrono::microseconds{500};    ///< between small requests
    static constexpr Duration kLongestLargeGap = std::chrono::milliseconds{2}; ///< between large ones
    static constexpr std::uint64_t kLargeBytes = 64 * 1024;
    static constexpr unsigned kRarestProbe = 256;

    /// The device took `count` > 0 requests at `now`, which move `bytes` of data together.
    void took(Clock::time_point now, unsigned count, std::uint64_t bytes) noexcept;
    /// `count` > 0 requests are done, and in the used ring.
    void finished(Clock::time_point now, unsigned count) noexcept;

    /// Whether something is done of which the driver was not told.
    [[nodiscard]] bool holds_any() const noexcept { return held_ != 0; }
    /// Whether the driver is to be told now; `under_way` requests are not done yet.
    [[nodiscard]] bool is_due(Clock::time_point now, unsigned under_way) const noexcept;
    /// It was told.
    void told() noexcept;
    /// Nothing is held any more: the driver has reset the device.
    void reset() noexcept { *this = {}; }

    /// Whether requests are so large that the time until the next one is for sleeping.
    [[nodiscard]] bool is_for_sleeping() const noexcept { return bytes_ >= kLargeBytes; }
    /// How long it is worth to wait for another request.
    [[nodiscard]] Duration patience() const noexcept;
    /// When is_due() if nothing happens before. Only where holds_any().
    [[nodiscard]] Clock::time_point deadline() const noexcept;

  private:
    [[nodiscard]] unsigned goal() const noexcept;

    unsigned held_ = 0;
    unsigned batch_ = 1;       ///< how many came together the last time
    bool probing_ = false;     ///< this time, more than that are waited for
    unsigned probe_pause_ = 1; ///< from one probe to the next, in interrupts
    unsigned until_probe_ = 1;
    Clock::time_point last_taken_{};
    Clock::time_point last_event_{};
    Clock::time_point first_held_{};
    Duration gap_ = std::chrono::microseconds{10}; ///< between requests, a moving average
    std::uint64_t bytes_ = 0;                      ///< of a request, likewise
};

} // namespace vmm::devices::virtio
