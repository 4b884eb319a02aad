// The host bridge: device 0 of the bus.
#pragma once

#include "devices/pci/config_space.hpp"
#include "devices/pci/function.hpp"

namespace vmm::devices::pci {

/// It has a configuration space that identifies it, and no registers. The RootBus does all the work of a bridge.
class HostBridge final : public Function {
  public:
    HostBridge();

    [[nodiscard]] std::string_view name() const noexcept override { return "host-bridge"; }
    void read_config(std::uint16_t offset, std::span<std::byte> data) noexcept override;
    /// A driver cannot write anything: the bridge always is as after a reset, and has no state.
    void write_config(std::uint16_t offset, std::span<const std::byte> data) noexcept override;

  private:
    const ConfigSpace config_;
};

} // namespace vmm::devices::pci
