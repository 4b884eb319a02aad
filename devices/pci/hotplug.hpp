// The registers by which devices come and go while a guest runs.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>

#include "devices/device.hpp"

namespace vmm::devices::pci {

/// Three registers of 32 bits, in which bit n is slot n, as the guest's ACPI tables describe them
/// (loader::PciHardware):
///
///     0  the slots to which a device has come          reading clears
///     4  the slots whose device is asked to go         reading clears
///     8  writing ones: the devices may be taken away   reads as zeros
///
/// They are there for aligned accesses of 4 bytes; other reads give ones, and other writes do nothing.
///
/// Threads: any, at once.
class Hotplug final : public Device {
  public:
    static constexpr std::uint64_t kSize = 12;

    struct State {
        std::uint32_t come = 0;
        std::uint32_t gone = 0;

        friend bool operator==(const State&, const State&) = default;
    };

    /// `line` is raised when the guest has to look; it outlives this. `let_go` is called for a slot whose device the
    /// guest does without from now on, on the thread of a vCPU: it throws nothing.
    Hotplug(IrqLine& line, std::function<void(unsigned slot)> let_go, const State& state);

    /// A device has come to `slot`, which is below 32.
    void announce(unsigned slot) noexcept;
    /// The device in `slot` is wanted back. A guest may never answer.
    void ask_back(unsigned slot) noexcept;

    [[nodiscard]] std::string_view name() const noexcept override { return "pci-hotplug"; }
    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override;

    [[nodiscard]] State state() const noexcept { return {come_.load(), gone_.load()}; }
    /// Interrupts once more if the guest has not looked. For registers that go on from a state, once the interrupt
    /// controllers have theirs.
    void repeat_interrupt() noexcept;

  private:
    IrqLine& line_;
    const std::function<void(unsigned)> let_go_;
    std::atomic<std::uint32_t> come_;
    std::atomic<std::uint32_t> gone_;
};

} // namespace vmm::devices::pci
