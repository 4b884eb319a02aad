// The registers by which devices come and go while a guest runs.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>

#include "devices/device.hpp"

namespace vmm::devices::pci {

/// Three registers of 32 bits, in which bit n stands for slot n. The guest's ACPI tables describe them
/// (loader::PciHardware):
///
///     0  the slots to which a device has come          reading clears
///     4  the slots whose device is asked to go         reading clears
///     8  writing ones: the devices may be taken away   reads as zeros
///
/// Only aligned accesses of 4 bytes reach them. Other reads return ones, and other writes do nothing.
///
/// Threads: any number at once.
class Hotplug final : public Device {
  public:
    static constexpr std::uint64_t kSize = 12;

    struct State {
        std::uint32_t come = 0;
        std::uint32_t gone = 0;

        friend bool operator==(const State&, const State&) = default;
    };

    /// `line` is raised when the guest must read the registers; it must outlive this object. `let_go` is called for a
    /// slot whose device the guest no longer uses, on the thread of a vCPU; it must not throw.
    Hotplug(IrqLine& line, std::function<void(unsigned slot)> let_go, const State& state);

    /// Reports that a device has come to `slot`, which must be below 32.
    void announce(unsigned slot) noexcept;
    /// Asks for the device in `slot` back. A guest may never answer.
    void ask_back(unsigned slot) noexcept;

    [[nodiscard]] std::string_view name() const noexcept override { return "pci-hotplug"; }
    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override;

    [[nodiscard]] State state() const noexcept { return {come_.load(), gone_.load()}; }
    /// Raises the interrupt again if the guest has not read the registers. Call it after a restore, when the interrupt
    /// controllers have their state.
    void repeat_interrupt() noexcept;

  private:
    IrqLine& line_;
    const std::function<void(unsigned)> let_go_;
    std::atomic<std::uint32_t> come_;
    std::atomic<std::uint32_t> gone_;
};

} // namespace vmm::devices::pci
