// A heartbeat: something that is due a thousand times a second, and how late it was.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "vmm/guest/text.hpp"

namespace vmm::guest {

/// Counts times in nanoseconds. There is a bucket for each of the times 0 to 15, and above them 16 buckets for each
/// power of two, up to 36 minutes. Longer times count as 36 minutes. It is small, because it is on the stack of a
/// guest.
class TimeCounts {
  public:
    constexpr void note(std::uint64_t nanoseconds) noexcept {
        ++buckets_[bucket_of(nanoseconds)];
        ++count_;
        most_ = nanoseconds > most_ ? nanoseconds : most_;
    }

    [[nodiscard]] constexpr std::uint64_t count() const noexcept { return count_; }
    [[nodiscard]] constexpr std::uint64_t most() const noexcept { return most_; }
    /// The least time that `percent` percent of all times do not exceed, or up to a 16th more; 0 if there are none.
    [[nodiscard]] constexpr std::uint64_t quantile(unsigned percent) const noexcept {
        const std::uint64_t rank = (count_ * percent + 99) / 100;
        std::uint64_t below = 0;
        for (std::size_t i = 0; i < buckets_.size(); ++i) {
            below += buckets_[i];
            if (below >= rank && below != 0) {
                return end_of(i) < most_ && i + 1 < buckets_.size() ? end_of(i) : most_;
            }
        }
        return most_;
    }

  private:
    static constexpr unsigned kBits = 4;
    static constexpr std::uint64_t kOfEach = 1U << kBits;
    static constexpr unsigned kPowers = 41;
    static constexpr std::uint64_t kEnd = std::uint64_t{1} << kPowers;

    static constexpr std::size_t bucket_of(std::uint64_t value) noexcept {
        if (value < kOfEach) {
            return static_cast<std::size_t>(value);
        }
        value = value < kEnd ? value : kEnd - 1;
        const auto power = static_cast<unsigned>(std::bit_width(value)) - 1;
        return static_cast<std::size_t>((power - kBits + 1) * kOfEach + (value >> (power - kBits)) % kOfEach);
    }
    /// The largest value in a bucket.
    static constexpr std::uint64_t end_of(std::size_t bucket) noexcept {
        if (bucket < kOfEach) {
            return bucket;
        }
        const auto power = static_cast<unsigned>(bucket / kOfEach) - 1;
        return ((kOfEach + bucket % kOfEach + 1) << power) - 1;
    }

    std::array<std::uint32_t, (kPowers - kBits + 1) * kOfEach> buckets_{};
    std::uint64_t count_ = 0;
    std::uint64_t most_ = 0;
};

/// What a heartbeat has measured.
struct HeartbeatReport {
    std::uint64_t beats = 0;
    std::uint64_t late_p50_ns = 0;
    std::uint64_t late_p99_ns = 0;
    std::uint64_t late_max_ns = 0;
    std::uint64_t backward = 0; ///< how often the clock showed less than before
};

/// Looks at a clock, and notes for each beat how late it was seen. A beat is due every millisecond, even if the beat
/// before it was late. If nobody could look for some milliseconds, each beat of that time is noted as late.
class Heartbeat {
  public:
    constexpr Heartbeat() noexcept = default;
    /// `ticks_per_ms` is the rate of the clock, not 0. The first beat is due a millisecond after `now`.
    constexpr Heartbeat(std::uint64_t ticks_per_ms, std::uint64_t now) noexcept
        : period_(ticks_per_ms), due_(now + ticks_per_ms), last_(now) {}

    /// Takes the time of the clock, and returns whether a beat was due. If so, the beat is noted, and the next one
    /// becomes due.
    constexpr bool look(std::uint64_t now) noexcept {
        if (now < last_) {
            ++backward_;
            // The clock may have gone back by hours.
            due_ = due_ - now > period_ ? now + period_ : due_;
        }
        last_ = now;
        if (now < due_) {
            return false;
        }
        const std::uint64_t late = now - due_;
        counts_.note(nanoseconds(late));
        due_ = late / period_ > kMostBeatsBehind ? now + period_ : due_ + period_;
        return true;
    }

    /// The time when the next beat is due.
    [[nodiscard]] constexpr std::uint64_t due() const noexcept { return due_; }

    /// Returns what was measured since the last call. The next beat is due a millisecond after `now`.
    constexpr HeartbeatReport take(std::uint64_t now) noexcept {
        const HeartbeatReport report{counts_.count(), counts_.quantile(50), counts_.quantile(99), counts_.most(),
                                     backward_};
        counts_ = {};
        backward_ = 0;
        last_ = now;
        due_ = now + period_;
        return report;
    }

  private:
    /// At most this many late beats are noted one by one. That takes almost no time.
    static constexpr std::uint64_t kMostBeatsBehind = 60'000;

    [[nodiscard]] constexpr std::uint64_t nanoseconds(std::uint64_t ticks) const noexcept {
        constexpr std::uint64_t kOfMs = 1'000'000;
        return ticks / period_ * kOfMs + ticks % period_ * kOfMs / period_;
    }

    std::uint64_t period_ = 1;
    std::uint64_t due_ = 0;
    std::uint64_t last_ = 0;
    std::uint64_t backward_ = 0;
    TimeCounts counts_;
};

/// "heartbeat beats=1000 late_p50_us=0.31 late_p99_us=0.80 late_max_us=27.05 backward=0"
[[nodiscard]] constexpr Line heartbeat_line(const HeartbeatReport& report) noexcept {
    constexpr std::uint64_t kNanosecondsOfHundredth = 10;
    Line line("heartbeat");
    line.field("beats", report.beats)
        .field_hundredths("late_p50_us", report.late_p50_ns / kNanosecondsOfHundredth)
        .field_hundredths("late_p99_us", report.late_p99_ns / kNanosecondsOfHundredth)
        .field_hundredths("late_max_us", report.late_max_ns / kNanosecondsOfHundredth)
        .field("backward", report.backward);
    return line;
}

} // namespace vmm::guest
