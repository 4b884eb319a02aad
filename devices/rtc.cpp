#include "devices/rtc.hpp"

#include <algorithm>
#include <cassert>
#include <utility>

#include "kvm/host/error.hpp"

namespace vmm::devices {
namespace {

using std::chrono::days;
using std::chrono::hours;
using std::chrono::microseconds;
using std::chrono::minutes;
using std::chrono::months;
using std::chrono::seconds;

// Indices (MC146818 data sheet, "Address map").
constexpr std::uint8_t kSeconds = 0x00;
constexpr std::uint8_t kMinutes = 0x02;
constexpr std::uint8_t kHours = 0x04;
constexpr std::uint8_t kDayOfWeek = 0x06; // Sunday is 1
constexpr std::uint8_t kDayOfMonth = 0x07;
constexpr std::uint8_t kMonth = 0x08;
constexpr std::uint8_t kYear = 0x09;
constexpr std::uint8_t kRegisterA = 0x0a;
constexpr std::uint8_t kRegisterB = 0x0b;
constexpr std::uint8_t kRegisterC = 0x0c;
constexpr std::uint8_t kRegisterD = 0x0d;
constexpr std::uint8_t kIndexMask = 0x7f;

// The registers that show the time. The registers between them belong to the alarm, and are only memory here.
constexpr std::array kTimeRegisters = {kSeconds,    kMinutes, kHours, kDayOfWeek,
                                       kDayOfMonth, kMonth,   kYear,  Rtc::kCenturyIndex};

constexpr std::uint8_t kUpdateInProgress = 0x80; // A: read only
constexpr std::uint8_t kDividerReset = 0x60;     // A: the upper two of the divider's three bits hold the clock
constexpr std::uint8_t kSet = 0x80;              // B: the guest is setting the time
constexpr std::uint8_t kBinary = 0x04;           // B: else BCD
constexpr std::uint8_t k24Hours = 0x02;          // B: else 1 to 12, with kPm
constexpr std::uint8_t kPm = 0x80;               // in the hours register
constexpr std::uint8_t kValidRamAndTime = 0x80;  // D: the battery is good

constexpr std::uint8_t kPowerOnA = 0x26; // 32,768 Hz time base, 1,024 Hz square wave
constexpr std::uint8_t kPowerOnB = k24Hours;

constexpr std::byte kNoRegister{0xff};

// The time from UIP to the update (data sheet, "Update cycle").
constexpr microseconds kUpdateWarning{244};
// The time from the release of the divider to the first update (data sheet, "Divider control").
constexpr microseconds kAfterDividerReset{500'000};
// It is more than any date that a guest can set, and small enough that no sum overflows.
constexpr microseconds kLargestOffset = std::chrono::years{30'000};

using Memory = std::array<std::uint8_t, Rtc::kMemoryBytes>;
using Time = std::chrono::sys_time<microseconds>;

constexpr bool is_time(std::uint8_t index) noexcept {
    return std::ranges::find(kTimeRegisters, index) != kTimeRegisters.end();
}

microseconds fraction_of_second(Time time) noexcept {
    return time - std::chrono::floor<seconds>(time);
}

// The format of numbers, according to register B.
class Format {
  public:
    explicit Format(const Memory& memory) noexcept
        : binary_((memory[kRegisterB] & kBinary) != 0), has_24_hours_((memory[kRegisterB] & k24Hours) != 0) {}

    [[nodiscard]] std::uint8_t encode(unsigned value) const noexcept {
        return static_cast<std::uint8_t>(binary_ ? value : (value / 10 % 10 * 16) + (value % 10));
    }
    // The result is also defined for values that are not BCD; it is at most 165.
    [[nodiscard]] unsigned decode(unsigned value) const noexcept {
        return binary_ ? value : (value / 16 * 10) + (value % 16);
    }
    [[nodiscard]] std::uint8_t encode_hour(unsigned hour) const noexcept {
        if (has_24_hours_) {
            return encode(hour);
        }
        const unsigned on_the_dial = hour % 12 == 0 ? 12 : hour % 12;
        return static_cast<std::uint8_t>(encode(on_the_dial) | (hour >= 12 ? kPm : 0U));
    }
    [[nodiscard]] unsigned decode_hour(unsigned value) const noexcept {
        if (has_24_hours_) {
            return decode(value);
        }
        return (decode(value & ~unsigned{kPm}) % 12) + ((value & kPm) != 0 ? 12U : 0U);
    }

  private:
    bool binary_;
    bool has_24_hours_;
};

// The value that the register at `index`, one of kTimeRegisters, shows at `time`.
std::uint8_t encode_time(Time time, std::uint8_t index, Format format) noexcept {
    const auto midnight = std::chrono::floor<days>(time);
    const std::chrono::year_month_day date{midnight};
    const std::chrono::hh_mm_ss clock{std::chrono::floor<seconds>(time - midnight)};
    const int year = static_cast<int>(date.year());
    const int year_of_century = ((year % 100) + 100) % 100;
    switch (index) {
    case kSeconds:
        return format.encode(static_cast<unsigned>(clock.seconds().count()));
    case kMinutes:
        return format.encode(static_cast<unsigned>(clock.minutes().count()));
    case kHours:
        return format.encode_hour(static_cast<unsigned>(clock.hours().count()));
    case kDayOfWeek:
        return format.encode(std::chrono::weekday{midnight}.c_encoding() + 1);
    case kDayOfMonth:
        return format.encode(static_cast<unsigned>(date.day()));
    case kMonth:
        return format.encode(static_cast<unsigned>(date.month()));
    case kYear:
        return format.encode(static_cast<unsigned>(year_of_century));
    default:
        return format.encode(static_cast<unsigned>((year - year_of_century) / 100));
    }
}

// The time that the registers in `memory` show, to the second. Every content gives a time: a value that is too large
// for its place is carried, so that the 32nd of January is the first of February.
Time decode_time(const Memory& memory, Format format) noexcept {
    const auto number = [&](std::uint8_t index) { return static_cast<int>(format.decode(memory[index])); };
    const std::chrono::year year{(number(Rtc::kCenturyIndex) * 100) + number(kYear)};
    const std::chrono::year_month month = year / std::chrono::January + months{number(kMonth) - 1};
    const std::chrono::sys_days first_of_month{month / 1};
    return first_of_month + days{number(kDayOfMonth) - 1} +
           hours{static_cast<int>(format.decode_hour(memory[kHours]))} + minutes{number(kMinutes)} +
           seconds{number(kSeconds)};
}

Rtc::State checked(const Rtc::State& state) {
    const bool possible = state.index <= kIndexMask && state.offset <= kLargestOffset &&
                          state.offset >= -kLargestOffset && (state.memory[kRegisterA] & kUpdateInProgress) == 0 &&
                          state.memory[kRegisterC] == 0 && state.memory[kRegisterD] == kValidRamAndTime;
    if (!possible) {
        throw Error("cannot restore rtc: no clock can be in the state saved (the snapshot is damaged)");
    }
    return state;
}

} // namespace

std::array<std::uint8_t, Rtc::kMemoryBytes> Rtc::power_on_memory() noexcept {
    Memory memory{};
    memory[kRegisterA] = kPowerOnA;
    memory[kRegisterB] = kPowerOnB;
    memory[kRegisterD] = kValidRamAndTime;
    return memory;
}

Rtc::Clock Rtc::host_clock() {
    return [] { return std::chrono::system_clock::now(); };
}

Rtc::Rtc(Clock clock) : Rtc(State{}, std::move(clock)) {}

Rtc::Rtc(const State& state, Clock clock) : clock_(std::move(clock)), state_(checked(state)) {
    assert(clock_ != nullptr);
}

void Rtc::read(std::uint64_t offset, std::span<std::byte> data) noexcept {
    const std::lock_guard lock(mutex_);
    for (std::byte& byte : data) {
        byte = offset == kDataOffset ? std::byte{read_memory()} : kNoRegister; // The index cannot be read back.
        ++offset;
    }
}

void Rtc::write(std::uint64_t offset, std::span<const std::byte> data) noexcept {
    const std::lock_guard lock(mutex_);
    for (const std::byte byte : data) {
        const auto value = std::to_integer<std::uint8_t>(byte);
        if (offset == kIndexOffset) {
            state_.index = value & kIndexMask;
        } else if (offset == kDataOffset) {
            write_memory(value);
        }
        ++offset;
    }
}

Rtc::State Rtc::state() const noexcept {
    const std::lock_guard lock(mutex_);
    return state_;
}

std::uint8_t Rtc::read_memory() const noexcept {
    const std::uint8_t content = state_.memory[state_.index];
    if (is_stopped()) {
        return content;
    }
    if (is_time(state_.index)) {
        return encode_time(guest_time(), state_.index, Format{state_.memory});
    }
    if (state_.index == kRegisterA && fraction_of_second(guest_time()) >= seconds{1} - kUpdateWarning) {
        return content | kUpdateInProgress;
    }
    return content;
}

void Rtc::write_memory(std::uint8_t value) noexcept {
    if (state_.index == kRegisterA || state_.index == kRegisterB) {
        write_control(value);
    } else if (state_.index == kRegisterC || state_.index == kRegisterD) {
        return; // These registers cannot be written.
    } else if (is_time(state_.index) && !is_stopped()) {
        const microseconds fraction = fraction_of_second(guest_time());
        latch_time();
        state_.memory[state_.index] = value;
        resume(fraction);
    } else {
        state_.memory[state_.index] = value;
    }
}

void Rtc::write_control(std::uint8_t value) noexcept {
    const bool was_stopped = is_stopped();
    if (!was_stopped) {
        latch_time();
    }
    const bool is_a = state_.index == kRegisterA;
    state_.memory[state_.index] = is_a ? value & ~kUpdateInProgress : value;
    if (was_stopped && !is_stopped()) {
        // SET does not disturb the divider that makes seconds out of the time base. A reset of the divider does.
        resume(is_a ? kAfterDividerReset : fraction_of_second(guest_time()));
    }
}

Rtc::Time Rtc::host_time() const noexcept {
    return std::chrono::floor<microseconds>(clock_());
}

Rtc::Time Rtc::guest_time() const noexcept {
    return host_time() + state_.offset;
}

bool Rtc::is_stopped() const noexcept {
    return (state_.memory[kRegisterB] & kSet) != 0 || (state_.memory[kRegisterA] & kDividerReset) == kDividerReset;
}

void Rtc::latch_time() noexcept {
    const Time time = guest_time();
    for (const std::uint8_t index : kTimeRegisters) {
        state_.memory[index] = encode_time(time, index, Format{state_.memory});
    }
}

void Rtc::resume(microseconds fraction) noexcept {
    state_.offset = decode_time(state_.memory, Format{state_.memory}) + fraction - host_time();
}

} // namespace vmm::devices
