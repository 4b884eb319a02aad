// The battery-backed clock and memory of a PC.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <string_view>

#include "devices/device.hpp"

namespace vmm::devices {

/// The Motorola MC146818 real-time clock with 128 bytes of memory, behind an index port and a data port (0x70, 0x71).
///
/// The time is the host's, in UTC, plus an offset that is 0 until the guest sets its clock. It is computed when the
/// guest reads it: nothing ticks, and if the host's clock is set, the guest's clock moves, too. If a guest sets a date
/// that does not exist (month 13), the excess is carried when the clock starts to run.
///
/// It differs from the chip in that it has no interrupts. The alarm time and the interrupt enables are only memory, and
/// register C reads 0. Guests set timers elsewhere. A driver that waits for the update interrupt times out.
///
/// Threads: any number at once.
class Rtc final : public Device {
  public:
    static constexpr std::uint64_t kIndexOffset = 0; ///< port 0x70; bit 7, the NMI mask, is ignored
    static constexpr std::uint64_t kDataOffset = 1;  ///< port 0x71
    /// The number of I/O ports that it takes.
    static constexpr std::uint64_t kSize = 2;
    /// The index of the century, for the FADT (CENTURY).
    static constexpr std::uint8_t kCenturyIndex = 0x32;
    static constexpr std::size_t kMemoryBytes = 128;

    /// Returns the time. It is called with the clock's lock held, on any thread, and may not throw.
    using Clock = std::function<std::chrono::system_clock::time_point()>;

    struct State {
        /// How far the guest's clock is ahead of the host's. At most 30,000 years either way.
        std::chrono::microseconds offset{0};
        std::uint8_t index = 0; ///< the register selected, 0 to 127
        /// By index. The time of day and the date in it are valid only while the clock is stopped. Register C is 0,
        /// register D says that the battery is good, and bit 7 of register A is clear.
        std::array<std::uint8_t, kMemoryBytes> memory = power_on_memory();

        friend bool operator==(const State&, const State&) = default;
    };

    /// The host's clock.
    [[nodiscard]] static Clock host_clock();

    /// Shows the time of `clock`, which may not be empty.
    explicit Rtc(Clock clock = host_clock());
    /// Continues from `state`.
    /// Throws Error if no clock can be in that state.
    explicit Rtc(const State& state, Clock clock = host_clock());

    [[nodiscard]] std::string_view name() const noexcept override { return "rtc"; }
    /// A wide access is one access for each byte, at rising offsets. So a 16-bit write to the index port selects a
    /// register and writes it.
    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override;

    [[nodiscard]] State state() const noexcept;

  private:
    /// Microseconds since 1970. The range of system_clock itself is too small for every date that a guest can set.
    using Time = std::chrono::sys_time<std::chrono::microseconds>;

    static std::array<std::uint8_t, kMemoryBytes> power_on_memory() noexcept;

    [[nodiscard]] std::uint8_t read_memory() const noexcept;
    void write_memory(std::uint8_t value) noexcept;
    void write_control(std::uint8_t value) noexcept;

    [[nodiscard]] Time host_time() const noexcept;
    [[nodiscard]] Time guest_time() const noexcept;
    [[nodiscard]] bool is_stopped() const noexcept;
    /// Writes the running time into the memory, in the format that the guest has chosen.
    void latch_time() noexcept;
    /// Lets the clock continue from the time in the memory. `fraction` is how much of that second has passed.
    void resume(std::chrono::microseconds fraction) noexcept;

    const Clock clock_;
    mutable std::mutex mutex_; ///< guards all below
    State state_;
};

} // namespace vmm::devices
