// When to tell a driver of what is done, and when to be told of what is to be done.
#pragma once

#include <chrono>
#include <cstdint>

namespace vmm::devices::virtio {

/// Interrupt moderation. An interrupt costs a guest several exits, and a driver with many requests under way needs one
/// interrupt for many of them. The used ring is filled at once in any case: only the interrupt waits. A doorbell costs
/// one exit, and the device needs one doorbell for many requests. docs/devices.md says what that buys.
///
/// Small requests are done sooner than a thread is woken, so that the device looks again and again instead of sleeping.
/// The interrupt waits until as many requests are done as came together the last times, or half of those under way, or
/// kMostHeld. It waits no longer than twice the usual distance between requests after the last one, nor the longest
/// hold. A driver with one request at a time is told at once: how many come together is found by waiting for one more
/// now and then, ever more rarely if none comes.
///
/// Large requests are copied by threads of the kernel's that need a processor, so that the device sleeps. The interrupt
/// is due when half of the requests that the driver keeps under way are done, and the doorbell when half of them have
/// come. The other half keeps the slower side busy. If the host is the slower side, that number shows by itself. If the
/// driver is, it is found by telling the driver nothing for once, ever more rarely while the answer is the same. Nobody
/// waits in vain longer than until deadline(). A small request among large ones is told at once.
///
/// Time is given by the caller. Threads: one.
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

    /// With `on` false nothing waits: each interrupt is due at once, and each doorbell is for the next request.
    explicit InterruptModeration(bool on = true) noexcept : on_(on) {}

    /// The device took `count` > 0 requests at `now`, which move `bytes` of data together.
    void took(Clock::time_point now, unsigned count, std::uint64_t bytes) noexcept;
    /// `count` > 0 requests are done, and in the used ring; `small`: one of them moved less than kLargeBytes.
    void finished(Clock::time_point now, unsigned count, bool small) noexcept;

    /// Whether something is done of which the driver was not told.
    [[nodiscard]] bool holds_any() const noexcept { return held_ != 0; }
    /// Whether the driver is to be told now; `under_way` requests are not done yet.
    [[nodiscard]] bool is_due(Clock::time_point now, unsigned under_way) const noexcept;
    /// It was told; `under_way` requests are not done yet.
    void told(Clock::time_point now, unsigned under_way) noexcept;

    /// With how many more requests a doorbell is worth its exit, 1 or more. If it is more than 1, deadline() is the
    /// time to look whether fewer have come.
    [[nodiscard]] unsigned doorbell_after(Clock::time_point now) noexcept;
    /// Nothing is held any more: the driver has reset the device.
    void reset() noexcept { *this = InterruptModeration(on_); }

    /// Whether requests are so large that the time until the next one is for sleeping.
    [[nodiscard]] bool is_for_sleeping() const noexcept { return bytes_ >= kLargeBytes; }
    /// How long it is worth to wait for another request.
    [[nodiscard]] Duration patience() const noexcept;
    /// When to look again if nothing happens before: is_due() then, if holds_any().
    [[nodiscard]] Clock::time_point deadline() const noexcept;

  private:
    [[nodiscard]] unsigned goal() const noexcept;
    [[nodiscard]] bool learn_depth(Clock::time_point now, unsigned under_way) noexcept;

    bool on_;
    unsigned held_ = 0;
    bool urgent_ = false;      ///< one of them is a small one among large ones
    unsigned at_driver_ = 0;   ///< requests that the driver was told of and has not replaced
    unsigned depth_ = 1;       ///< how many large ones the driver keeps under way
    unsigned batch_ = 1;       ///< how many came together the last time
    bool probing_ = false;     ///< this time, more than usual are waited for
    unsigned probe_pause_ = 1; ///< from one probe to the next, in interrupts
    unsigned until_probe_ = 1;
    Clock::time_point last_taken_{};
    Clock::time_point last_event_{};
    Clock::time_point first_held_{};
    Duration gap_ = std::chrono::microseconds{10}; ///< between requests, a moving average
    std::uint64_t bytes_ = 0;                      ///< of a request, likewise
};

} // namespace vmm::devices::virtio
