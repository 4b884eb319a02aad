// The two registers of a PC's chipset that reset the machine: port 0x92 and port 0xcf9.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>

#include "devices/device.hpp"

namespace vmm::devices {

/// A register of one byte that resets the machine when one of its bits changes from 0 to 1. All its bits read as they
/// were written.
///
/// An access reaches the register only if it is one byte wide and goes to the register's port. All other reads return
/// ones, and all other writes are ignored.
///
/// Threads: any number at once.
class ResetRegister final : public Device {
  public:
    struct Layout {
        std::string_view name;
        std::uint64_t size;     ///< number of I/O ports that the device takes
        std::uint64_t offset;   ///< of the register among these ports
        std::uint8_t bits;      ///< the bits that exist; the others are always zero
        std::uint8_t reset_bit; ///< one of `bits`
        std::uint8_t at_power_on;
    };

    struct State {
        std::uint8_t value; ///< of the bits that exist

        friend bool operator==(const State&, const State&) = default;
    };

    /// `reset` is called on the thread of the vCPU that made the write. It may not be empty, and may not throw.
    ResetRegister(const Layout& layout, std::function<void()> reset);
    /// Continues from `state`.
    /// Throws Error if the register cannot be in that state.
    ResetRegister(const Layout& layout, std::function<void()> reset, const State& state);

    [[nodiscard]] std::string_view name() const noexcept override { return layout_.name; }
    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override;

    [[nodiscard]] State state() const noexcept;

  private:
    [[nodiscard]] bool is_register(std::uint64_t offset, std::size_t bytes) const noexcept;

    const Layout layout_;
    const std::function<void()> reset_;
    std::atomic<std::uint8_t> value_;
};

/// System control port A, at port 0x92. Bit 0 is the fast reset. Bit 1 is the A20 gate, which is open at first. Closing
/// it changes nothing, because KVM cannot switch off an address line of a guest.
namespace system_control {

inline constexpr std::uint8_t kFastReset = 0x01;
inline constexpr std::uint8_t kA20 = 0x02;
inline constexpr ResetRegister::Layout kLayout{.name = "system-control",
                                               .size = 1,
                                               .offset = 0,
                                               .bits = kFastReset | kA20,
                                               .reset_bit = kFastReset,
                                               .at_power_on = kA20};

} // namespace system_control

/// The reset control register at port 0xcf9 (Intel ICH9 datasheet, 13.7.5, RST_CNT). Bit 2 resets the machine. Bits 1
/// and 3 select the kind of reset: the processor alone (bit 1 is clear), everything (bit 1 is set), or everything with
/// the power off and on (bit 3 is set, too). Here each kind is a reboot.
///
/// The device takes the ports 0xcf8 to 0xcfb. In a machine with PCI these ports also hold PCI's address register, and
/// pci::ConfigPorts passes all other accesses on to this device. Without PCI, reads of the address register return
/// ones, and writes to it are ignored.
namespace reset_control {

inline constexpr std::uint8_t kSystemReset = 0x02;
inline constexpr std::uint8_t kResetCpu = 0x04;
inline constexpr std::uint8_t kFullReset = 0x08;
inline constexpr ResetRegister::Layout kLayout{.name = "reset-control",
                                               .size = 4,
                                               .offset = 1,
                                               .bits = kSystemReset | kResetCpu | kFullReset,
                                               .reset_bit = kResetCpu,
                                               .at_power_on = 0};

} // namespace reset_control

} // namespace vmm::devices
