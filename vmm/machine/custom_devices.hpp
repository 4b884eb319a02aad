// The embedding program's devices, on the buses.
#pragma once

#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "devices/bus.hpp"
#include "devices/device.hpp"
#include "kvm/host/guest_memory.hpp"
#include "kvm/vm.hpp"
#include "vmm/config.hpp"
#include "vmm/device.hpp"
#include "vmm/machine/level_line.hpp"

namespace vmm {

/// Throws Error if a device of `config` cannot be at its place. It does not find devices that overlap; the bus finds
/// them.
void validate_custom_devices(const Config& config);

/// Throws Error if a device of `config` has no interrupt line of its own. `virtio_devices` is the number of virtio
/// devices beside them.
void check_interrupt_lines(const Config& config, std::size_t virtio_devices);

/// Owns the devices. They are called only on vCPU threads, so they stand still in a paused machine without being asked.
/// If a device has threads of its own, the embedding program must stop them.
///
/// Threads: the one that made it; the buses may call the devices on any.
class CustomDevices {
  public:
    /// It is called with what a device threw, on a vCPU's thread.
    using Failed = std::function<void(std::exception_ptr)>;

    /// Makes the devices. It must be called after kvm::Vm::create_irqchip(), and `memory` must outlive it. Throws
    /// Error, and what the makers throw.
    CustomDevices(kvm::Vm& vm, const GuestMemory& memory, std::span<const DeviceConfig> configs, const Failed& failed);

    ~CustomDevices();
    CustomDevices(const CustomDevices&) = delete;
    CustomDevices& operator=(const CustomDevices&) = delete;

    /// Whether one of the devices is at one of these I/O ports.
    [[nodiscard]] bool claims_ports(GuestRange ports) const;

    /// Puts each device on its bus. Throws Error.
    void attach_to(devices::Bus& ports, devices::Bus& mmio);

  private:
    /// Catches what a device throws, because the bus does not allow exceptions.
    class Guarded final : public devices::Device {
      public:
        Guarded(const DeviceConfig& config, std::string name, std::shared_ptr<CustomDevice> device, Failed failed);

        [[nodiscard]] std::string_view name() const noexcept override { return name_; }
        void read(std::uint64_t offset, std::span<std::byte> data) noexcept override;
        void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override;

        [[nodiscard]] const DeviceConfig& config() const noexcept { return config_; }

      private:
        const DeviceConfig& config_;
        std::string name_;
        std::shared_ptr<CustomDevice> device_;
        Failed failed_;
    };

    void disconnect() noexcept;
    [[nodiscard]] DeviceHost host_for(const DeviceConfig& config, kvm::Vm& vm, const GuestMemory& memory);

    std::deque<Guarded> devices_;                         ///< a deque, because the buses hold their addresses
    std::vector<std::shared_ptr<LevelLine>> level_lines_; ///< shared with those who raise them, and who may live longer
};

} // namespace vmm
