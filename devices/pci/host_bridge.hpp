// The host bridge: device 0 of the bus.
#pragma once

#include "devices/pci/config_space.hpp"
#include "devices/pci/function.hpp"

namespace vmm::devices::pci {

/// It has a configuration space that says what it is, and no registers: all that a bridge does, the RootBus does.
class HostBridge final : public Function {
  public:
    HostBridge();

    [[nodiscard]] std::string_view name() const noexcept override { return "host-bridge"; }
    void read_config(std::uint16_t offset, std::span<std::byte> data) noexcept override;
    /// Nothing of it is for a driver to write: it is what it is after a reset at any time, and has no state.
    void write_config(std::uint16_t offset, std::span<const std::byte> data) noexcept override;

  private:
    const ConfigSpace config_;
};

} // namespace vmm::devices::pci
