// Access to configuration space by I/O ports (PCI Local Bus 3.0, 3.2.2.3.2).
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string_view>

#include "devices/device.hpp"
#include "devices/pci/root_bus.hpp"

namespace vmm::devices::pci {

/// The ports 0xcf8 to 0xcff: the address register, which accepts only double words, and the data of the register that
/// it selects. A PC has its reset control among these ports, so `other` answers for accesses that are not to the
/// address register.
///
/// Threads: any number at once. If drivers on two vCPUs use the address register at the same time, they must coordinate
/// themselves.
class ConfigPorts final : public Device {
  public:
    static constexpr std::uint64_t kSize = 8;

    struct State {
        std::uint32_t address = 0; ///< as it was written, without the bits that do not exist

        friend bool operator==(const State&, const State&) = default;
    };

    /// `bus` and `other` must outlive it. It continues from `state`, which may have any value.
    ConfigPorts(RootBus& bus, Device& other, const State& state) noexcept;

    [[nodiscard]] std::string_view name() const noexcept override { return "pci-config"; }
    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override;

    [[nodiscard]] State state() const noexcept { return {address_.load()}; }

  private:
    RootBus& bus_;
    Device& other_;
    std::atomic<std::uint32_t> address_;
};

} // namespace vmm::devices::pci
