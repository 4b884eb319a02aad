// A device of the embedding program's own.
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
/// Threads: read() and write() may come from any vCPU's thread, several at once: a device locks itself. A vCPU waits
/// while they run, and so does a request to stop. They may call Machine::request_stop(), Machine::resume() and
/// Machine::statistics(), and must not destroy the machine.
///
/// The guest is hostile: every offset below the size of the device and every length (1 to 8 bytes, not passing the
/// device's end) comes sooner or later.
///
/// What they throw ends the run, and comes out of Machine::run(). The guest reads all ones then.
class CustomDevice {
  public:
    CustomDevice() = default;
    CustomDevice(const CustomDevice&) = delete;
    CustomDevice& operator=(const CustomDevice&) = delete;
    virtual ~CustomDevice();

    /// Fills all of `data` with what the guest reads at `offset` bytes from the base of the device, little endian.
    virtual void read(std::uint64_t offset, std::span<std::byte> data) = 0;
    /// Takes what the guest writes, in the same terms.
    virtual void write(std::uint64_t offset, std::span<const std::byte> data) = 0;
};

/// Where a device is.
enum class DeviceSpace {
    kPortIo, ///< x86 I/O ports, 0 to 0xffff
    kMmio,   ///< guest-physical addresses between 3 and 4 GiB, where no RAM is
};

/// How a device uses its interrupt line. The guest's driver has to set up the input of the I/O APIC in the same way,
/// active high.
enum class InterruptTrigger {
    kEdge,  ///< each raise is one interrupt
    kLevel, ///< the line stays up until it is lowered; until then the guest is interrupted again after each EOI
};

/// What a device gets of the machine that it is made for.
struct DeviceHost {
    /// The guest's memory, for as long as the machine lives.
    const GuestMemory& memory;
    /// With InterruptTrigger::kEdge, one edge on the device's interrupt line; with kLevel, the line goes up and stays
    /// there. From any thread, at any time, even when the machine is gone. Empty for a device without interrupt.
    std::function<void()> raise_interrupt;
    /// The line goes down: the device has no reason for an interrupt any more. In the same terms; empty unless the
    /// device's trigger is kLevel.
    std::function<void()> lower_interrupt{};
};

/// A device, and where the guest finds it. No table tells the guest of it: its driver has to know.
struct DeviceConfig {
    std::string name; ///< for messages; need not be another than that of other devices
    DeviceSpace space = DeviceSpace::kPortIo;
    std::uint64_t base = 0; ///< its first port or address
    std::uint64_t size = 0; ///< how many there are, at least 1
    /// The input of the I/O APIC that it raises. One that no other device has: 3, 5, 6, 7, 10, 11, 12 or 14 to 23, of
    /// which virtio devices take the first, beginning with 5.
    std::optional<std::uint32_t> interrupt;
    InterruptTrigger trigger = InterruptTrigger::kEdge; ///< kLevel needs an interrupt
    /// Makes the device, once for each machine, in the machine's constructor, which throws what it throws.
    std::function<std::shared_ptr<CustomDevice>(const DeviceHost&)> make;
};

} // namespace vmm
VMM_API_END
