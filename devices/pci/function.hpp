// One function of a PCI device, as the root bus sees it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "kvm/host/guest_address.hpp"

namespace vmm::devices::pci {

/// The configuration space (PCI Local Bus 3.0, chapter 6) and the registers behind the function's only base address
/// register.
///
/// Threads: any number at once. No member throws, and each locks for a bounded time. But a write may wait for the
/// device, e.g. for the reset of a virtio device, or until the device no longer accesses memory as a bus master.
class Function {
  public:
    Function() = default;
    Function(const Function&) = delete;
    Function(Function&&) = delete;
    Function& operator=(const Function&) = delete;
    Function& operator=(Function&&) = delete;
    virtual ~Function() = default;

    /// A short name for messages.
    [[nodiscard]] virtual std::string_view name() const noexcept = 0;

    /// `offset` must be below 4096. The access must be of 1 to 4 bytes within an aligned double word. Bytes without a
    /// register read as ones beyond the first 256 bytes, and as zeros below.
    virtual void read_config(std::uint16_t offset, std::span<std::byte> data) noexcept = 0;
    virtual void write_config(std::uint16_t offset, std::span<const std::byte> data) noexcept = 0;

    /// The range in which its registers answer now; nothing if it does not decode memory or has no registers.
    [[nodiscard]] virtual std::optional<GuestRange> decoded() const noexcept { return std::nullopt; }
    /// `offset` is relative to the beginning of decoded(), and the access lies within that range.
    virtual void read(std::uint64_t offset, std::span<std::byte> data) noexcept;
    virtual void write(std::uint64_t offset, std::span<const std::byte> data) noexcept;
};

} // namespace vmm::devices::pci
