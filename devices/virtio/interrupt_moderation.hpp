// Decides when to notify a driver of finished requests, and when to ask it for a doorbell.
#pragma once

#include <chrono>
#include <cstdint>

namespace vmm::devices::virtio {

/// Interrupt moderation. An interrupt costs a guest several exits, and a driver with many requests under way needs only
/// one interrupt for many of them. The used ring is filled at once in any case: only the interrupt waits. A doorbell
/// costs one exit, and the device needs only one for many requests. docs/devices.md has the measured effect.
///
/// Small requests are done faster than a thread is woken, so the device polls instead of sleeping. The interrupt waits
/// until as many requests are done as came together the last time, or half of those under way, or kMostHeld. After the
/// last request it waits at most twice the usual distance between requests, and never longer than the longest hold. A
/// driver with one request at a time is notified at once. To learn how many requests come together, the device
/// sometimes waits for one more, ever more rarely if none comes.
///
/// Large requests are copied by threads of the kernel that need a processor, so the device sleeps. The interrupt is due
/// when half of the requests that the driver keeps under way are done, and the doorbell when half of them have come.
/// The other half keeps the slower side busy. If the host is the slower side, the number of requests under way is
/// visible. If the driver is the slower side, the device finds the number by sometimes holding the interrupt back, ever
/// more rarely while the answer is the same. Nobody waits longer than until deadline(). A small request among large
/// ones is reported at once.
///
/// The caller provides the time. Threads: one.
class InterruptModeration {
  public:
    using Clock = std::chrono::steady_clock;
    using Duration = Clock::duration;

    static constexpr unsigned kMostHeld = 32;
    static constexpr Duration kLongestHold = std::chrono::milliseconds{4};       ///< of small requests
    static constexpr Duration kLongestLargeHold = std::chrono::milliseconds{16}; ///< of large ones
    static constexpr Duration kLongestGap = std::chrono::microseconds{500};      ///< between small requests
    static constexpr Duration kLongestLargeGap = std::chrono::milliseconds{2};   ///< between large ones
    static constexpr std::uint64_t kLargeBytes = 64 * 1024;
    static constexpr unsigned kRarestProbe = 256;

    /// If `on` is false, nothing waits: each interrupt is due at once, and each doorbell is for the next request.
    explicit InterruptModeration(bool on = true) noexcept : on_(on) {}

    /// Records that the device took `count` > 0 requests at `now`, which move `bytes` of data together.
    void took(Clock::time_point now, unsigned count, std::uint64_t bytes) noexcept;
    /// Records that `count` > 0 requests are done and in the used ring. `small` says that one of them moved less than
    /// kLargeBytes.
    void finished(Clock::time_point now, unsigned count, bool small) noexcept;

    /// True if a request is done and the driver was not told.
    [[nodiscard]] bool holds_any() const noexcept { return held_ != 0; }
    /// True if the driver must be told now; `under_way` requests are not done yet.
    [[nodiscard]] bool is_due(Clock::time_point now, unsigned under_way) const noexcept;
    /// Records that the driver was told; `under_way` requests are not done yet.
    void told(Clock::time_point now, unsigned under_way) noexcept;

    /// The number of further requests after which a doorbell is worth its exit, 1 or more. If it is more than 1,
    /// deadline() is the time to check whether fewer have come.
    [[nodiscard]] unsigned doorbell_after(Clock::time_point now) noexcept;
    /// Forgets everything that is held, because the driver has reset the device.
    void reset() noexcept { *this = InterruptModeration(on_); }

    /// True if requests are so large that the device should sleep until the next one.
    [[nodiscard]] bool is_for_sleeping() const noexcept { return bytes_ >= kLargeBytes; }
    /// How long it is worth waiting for another request.
    [[nodiscard]] Duration patience() const noexcept;
    /// When to check again if nothing happens before. If holds_any(), is_due() is true then.
    [[nodiscard]] Clock::time_point deadline() const noexcept;

  private:
    [[nodiscard]] unsigned goal() const noexcept;
    [[nodiscard]] bool learn_depth(Clock::time_point now, unsigned under_way) noexcept;

    bool on_;
    unsigned held_ = 0;
    bool urgent_ = false;      ///< one of the held requests is a small one among large ones
    unsigned at_driver_ = 0;   ///< requests that the driver was told of and has not replaced
    unsigned depth_ = 1;       ///< how many large requests the driver keeps under way
    unsigned batch_ = 1;       ///< how many requests came together the last time
    bool probing_ = false;     ///< this time the device waits for more requests than usual
    unsigned probe_pause_ = 1; ///< the distance between probes, in interrupts
    unsigned until_probe_ = 1;
    Clock::time_point last_taken_{};
    Clock::time_point last_event_{};
    Clock::time_point first_held_{};
    Duration gap_ = std::chrono::microseconds{10}; ///< between requests, a moving average
    std::uint64_t bytes_ = 0;                      ///< of a request, likewise
};

} // namespace vmm::devices::virtio
