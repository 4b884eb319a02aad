// The part of the keyboard controller that is needed: the reset line.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>

#include "devices/device.hpp"

namespace vmm::devices {

/// The 8042 keyboard controller of a PC without keyboard or mouse. It has one command, 0xFE, "pulse the reset line".
/// Everything else is ignored.
///
/// The status register always reads "output buffer full, input buffer empty". A guest waits for the empty input buffer
/// before it sends the reset command. Because reads do not empty the output buffer, Linux decides after 17 tries that
/// there is no controller, in less than a millisecond. If the buffer were empty, Linux would send a command and poll
/// 10,000 times for the answer.
///
/// If the FADT says "no 8042" (IAPC_BOOT_ARCH, bit 1 clear), Linux does not try at all.
///
/// Threads: any; nothing changes after construction.
class I8042 final : public Device {
  public:
    static constexpr std::uint64_t kDataOffset = 0;    ///< port 0x60
    static constexpr std::uint64_t kCommandOffset = 4; ///< port 0x64: status when read, command when written
    /// The number of I/O ports that it takes. The ports between data and command have no register and read as ones.
    static constexpr std::uint64_t kSize = 5;
    static constexpr std::uint8_t kResetCommand = 0xfe;

    /// The state is empty. It exists so that all devices are saved and restored in the same way.
    struct State {
        friend bool operator==(const State&, const State&) = default;
    };

    /// `reset` is called for each reset command, on the thread of the vCPU that sent it. Guests send the command
    /// several times in a row. `reset` may not be empty, and may not throw.
    explicit I8042(std::function<void()> reset);
    I8042(std::function<void()> reset, const State& state);

    [[nodiscard]] std::string_view name() const noexcept override { return "i8042"; }
    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override;

    [[nodiscard]] static State state() noexcept { return {}; }

  private:
    const std::function<void()> reset_;
};

} // namespace vmm::devices
