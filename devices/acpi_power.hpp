// Power-off and reset by hardware-reduced ACPI.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>

#include "devices/device.hpp"

namespace vmm::devices {

/// The sleep control and sleep status registers (ACPI 6.4, 4.8.3.7) and the reset register (4.8.3.6), one byte each.
/// The FADT names them by the base of the device and the offsets below. Nothing else in the tables tells a guest where
/// they are. S5, soft off, is the only sleep state.
///
/// Threads: any number at once.
class AcpiPower final : public Device {
  public:
    static constexpr std::uint64_t kSleepControlOffset = 0;
    static constexpr std::uint64_t kSleepStatusOffset = 1;
    static constexpr std::uint64_t kResetOffset = 2;
    /// The number of I/O ports or bytes of address space that it takes.
    static constexpr std::uint64_t kSize = 3;

    /// The sleep type (SLP_TYP) that means S5. The `_S5` package of the DSDT must say the same.
    static constexpr std::uint8_t kS5SleepType = 5;
    /// The value that resets the machine when it is written to the reset register: RESET_VALUE of the FADT.
    static constexpr std::uint8_t kResetValue = 0x06;

    struct Callbacks {
        std::function<void()> power_off;
        std::function<void()> reset;
    };

    struct State {
        std::uint8_t sleep_type = 0; ///< SLP_TYP as last written, 0 to 7

        friend bool operator==(const State&, const State&) = default;
    };

    /// The callbacks are called on the thread of the vCPU that made the request, once for each request. Neither may be
    /// empty, and neither may throw.
    explicit AcpiPower(Callbacks callbacks);
    /// Continues from `state`.
    /// Throws Error if no device can be in that state.
    AcpiPower(Callbacks callbacks, const State& state);

    [[nodiscard]] std::string_view name() const noexcept override { return "acpi-power"; }
    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override;

    [[nodiscard]] State state() const noexcept;

  private:
    const Callbacks callbacks_;
    std::atomic<std::uint8_t> sleep_type_;
};

} // namespace vmm::devices
