// Devices that the embedding program brings.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "kvm/host/export.hpp"
#include "kvm/host/guest_memory.hpp"

VMM_API_BEGIN
namespace vmm {

/// Registers that the guest reaches at I/O ports or at addresses that are not RAM.
///
/// The guest is hostile: every offset below the size of the device and every length (1 to 8 bytes, not passing the
/// device's end) comes sooner or later. If read() or write() throws, the guest reads all ones, the run ends, and
/// Machine::run() throws the same.
///
/// Threads: read() and write() may be called on any vCPU's thread, by several threads at once, so a device must lock
/// itself. The vCPU waits while they run, and so does a request to stop. They may call Machine::request_stop(),
/// Machine::resume() and Machine::statistics(), and must not destroy the machine.
class CustomDevice {
  public:
    CustomDevice() = default;
    CustomDevice(const CustomDevice&) = delete;
    CustomDevice& operator=(const CustomDevice&) = delete;
    virtual ~CustomDevice();

    /// Fills all of `data` with what the guest reads at `offset` bytes from the base of the device, little endian.
    virtual void read(std::uint64_t offset, std::span<std::byte> data) = 0;
    /// Takes `data`, which the guest writes at `offset`.
    virtual void write(std::uint64_t offset, std::span<const std::byte> data) = 0;
};

/// The bus that a device is on.
enum class DeviceSpace {
    kPortIo, ///< x86 I/O ports, 0 to 0xffff
    kMmio,   ///< guest-physical addresses between 3 and 4 GiB, where no RAM is
};

/// How a device uses its interrupt line. The guest's driver must set up the input of the I/O APIC with the same
/// trigger, and as active high.
enum class InterruptTrigger {
    kEdge,  ///< each raise is one interrupt
    kLevel, ///< the line stays up until it is lowered; until then the guest is interrupted again after each EOI
};

/// What the machine lends to a device.
struct DeviceHost {
    /// The guest's memory, for as long as the machine lives.
    const GuestMemory& memory;
    /// With InterruptTrigger::kEdge, it makes one edge on the device's interrupt line; with kLevel, it raises the line,
    /// which stays up. It may be called from any thread, at any time, even when the machine is gone. It is empty if the
    /// device has no interrupt.
    std::function<void()> raise_interrupt;
    /// Lowers the line. The device calls it when it has no reason for an interrupt any more, from any thread and at any
    /// time, as raise_interrupt. It is empty unless the device's trigger is kLevel.
    std::function<void()> lower_interrupt{};
};

/// A device, and the place where the guest finds it. No table tells the guest of it, so the guest's driver must know
/// the place.
struct DeviceConfig {
    std::string name; ///< for messages; several devices may have the same
    DeviceSpace space = DeviceSpace::kPortIo;
    std::uint64_t base = 0; ///< its first port or address
    std::uint64_t size = 0; ///< the number of ports or addresses, at least 1
    /// The input of the I/O APIC that it raises: 3, 5, 6, 7, 10, 11, 12 or 14 to 23. No other device may have the same
    /// input. Virtio devices over MMIO take the first of these, beginning with 5; PCI takes 19 to 23.
    std::optional<std::uint32_t> interrupt;
    InterruptTrigger trigger = InterruptTrigger::kEdge; ///< kLevel needs an interrupt
    /// Makes the device. Each machine's constructor calls it once; what it throws comes out of the constructor.
    std::function<std::shared_ptr<CustomDevice>(const DeviceHost&)> make;

    /// Throws Error if no machine can have it. `place` is its index in Config::devices, for messages.
    void check(std::size_t place) const;
};

} // namespace vmm
VMM_API_END
