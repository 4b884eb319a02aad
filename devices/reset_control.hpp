// The reset control register of a PC's chipset.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>

#include "devices/device.hpp"

namespace vmm::devices {

/// The register at port 0xcf9 (Intel ICH9 datasheet, 13.7.5, RST_CNT), among the ports 0xcf8 to 0xcfb, which are PCI's
/// address register where there is PCI: an access is one to the reset control register if it is a byte wide and goes to
/// port 0xcf9. All others go to PCI, which there is none of: they read as ones, and writes are ignored.
///
/// Bit 2 resets the machine when it goes from 0 to 1. Bit 1 and bit 3 say before or at the same time what kind of reset
/// it is: of the processor alone (bit 1 clear), of all (set), with the power off and on (bit 3, too). Each is a reboot
/// here. The other bits are zero.
///
/// Threads: any, at once.
class ResetControl final : public Device {
  public:
    /// Where the register is among the ports.
    static constexpr std::uint64_t kRegisterOffset = 1;
    static constexpr std::uint64_t kSize = 4;
    static constexpr std::uint8_t kSystemReset = 0x02;
    static constexpr std::uint8_t kResetCpu = 0x04;
    static constexpr std::uint8_t kFullReset = 0x08;

    struct State {
        std::uint8_t value = 0; ///< of the three bits

        friend bool operator==(const State&, const State&) = default;
    };

    /// `reset` is called from the thread of the vCPU that asked. It may not be empty, and may not throw.
    explicit ResetControl(std::function<void()> reset);
    /// Continues from `state`. Throws Error if no device can be in that state.
    ResetControl(std::function<void()> reset, const State& state);

    [[nodiscard]] std::string_view name() const noexcept override { return "reset-control"; }
    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override;

    [[nodiscard]] State state() const noexcept;

  private:
    const std::function<void()> reset_;
    std::atomic<std::uint8_t> value_;
};

} // namespace vmm::devices
