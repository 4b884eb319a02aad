// System control port A of a PC: the fast reset and the A20 gate.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>

#include "devices/device.hpp"

namespace vmm::devices {

/// This is port 0x92. Bit 0 resets the machine when it goes from 0 to 1, and reads as it was written. Bit 1 is the A20
/// gate: it is open at first, and it can be read and written. Closing it changes nothing, because no address line of a
/// guest of KVM can be switched off. The other bits are zero.
///
/// Threads: any, at once.
class SystemControl final : public Device {
  public:
    static constexpr std::uint64_t kSize = 1;
    static constexpr std::uint8_t kFastReset = 0x01;
    static constexpr std::uint8_t kA20 = 0x02;

    struct State {
        std::uint8_t value = kA20; ///< of the two bits

        friend bool operator==(const State&, const State&) = default;
    };

    /// `reset` is called from the thread of the vCPU that asked. It may not be empty, and may not throw.
    explicit SystemControl(std::function<void()> reset);
    /// Continues from `state`. Throws Error if no device can be in that state.
    SystemControl(std::function<void()> reset, const State& state);

    [[nodiscard]] std::string_view name() const noexcept override { return "system-control"; }
    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override;

    [[nodiscard]] State state() const noexcept;

  private:
    const std::function<void()> reset_;
    std::atomic<std::uint8_t> value_;
};

} // namespace vmm::devices
