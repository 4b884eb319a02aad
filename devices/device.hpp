// The interfaces between the bus and a device, and between a device and its interrupt.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace vmm::devices {

/// Registers the guest can reach, as one state machine. A device has no file descriptor and no thread of its own. It
/// reaches the host through callbacks that it was given at construction, and calls them without holding its lock.
///
/// Each device of this program returns its state as a value (`state()`), and can be made from one.
///
/// Threads: any vCPU thread may call `read` and `write`, several at once. Each device locks itself, and holds the lock
/// for a bounded time.
///
/// The guest is hostile: every offset and every length, including zero, has a defined result. Neither function throws,
/// blocks on the host, or allocates memory in proportion to what the guest does.
class Device {
  public:
    Device() = default;
    Device(const Device&) = delete;
    Device(Device&&) = delete;
    Device& operator=(const Device&) = delete;
    Device& operator=(Device&&) = delete;
    virtual ~Device() = default;

    /// A short name for messages: "serial", "rtc". Valid as long as the device.
    [[nodiscard]] virtual std::string_view name() const noexcept = 0;

    /// Fills all of `data` with what the guest reads at `offset` bytes from the base of the device, little endian.
    /// Bytes without a register are 0xff.
    virtual void read(std::uint64_t offset, std::span<std::byte> data) noexcept = 0;

    /// Takes what the guest writes at `offset`, little endian. Bytes without a register are ignored.
    virtual void write(std::uint64_t offset, std::span<const std::byte> data) noexcept = 0;
};

/// The connection to one input pin of the interrupt controller.
///
/// Threads: any number at once.
class IrqLine {
  public:
    IrqLine() = default;
    IrqLine(const IrqLine&) = delete;
    IrqLine(IrqLine&&) = delete;
    IrqLine& operator=(const IrqLine&) = delete;
    IrqLine& operator=(IrqLine&&) = delete;
    virtual ~IrqLine() = default;

    /// Makes one pulse: the pin rises and falls again, as when an irqfd is signalled. The pin must be edge-triggered.
    ///
    /// Pulses that come before the guest has taken the first one may merge into one. Nothing is lost by that if both
    /// sides do their part. A device makes its registers show a new reason first, and pulses afterwards. A driver reads
    /// the registers until they show no reason.
    virtual void raise() noexcept = 0;
};

} // namespace vmm::devices
