#include "devices/pci/config_ports.hpp"

#include <algorithm>
#include <cstring>
#include <optional>

#include "devices/pci/double_words.hpp"

namespace vmm::devices::pci {
namespace {

// The fields of the address register: a register of a function, 8 functions, 32 devices, 256 buses.
constexpr std::uint32_t kEnabled = 1U << 31U;
constexpr std::uint32_t kAddressBits = 0x00fffffc;
constexpr std::uint64_t kDataOffset = 4; ///< of port 0xcfc

constexpr std::byte kNoDevice{0xff};

constexpr bool is_address_register(std::uint64_t offset, std::size_t bytes) noexcept {
    return offset == 0 && bytes == sizeof(std::uint32_t);
}

/// The address of an access to the data ports in the layout of ECAM. Nothing if the access is beyond the ports, or to
/// no device of bus 0.
std::optional<std::uint32_t> selected(std::uint32_t address, std::uint64_t offset) noexcept {
    constexpr std::uint32_t kBusBits = 0x00ff0000;
    constexpr unsigned kFunctionShift = 8;
    constexpr unsigned kEcamFunctionShift = 12;
    constexpr std::uint32_t kDeviceAndFunctionBits = 0xff;
    constexpr std::uint32_t kRegisterBits = 0xfc;
    if (offset >= ConfigPorts::kSize || (address & kEnabled) == 0 || (address & kBusBits) != 0) {
        return std::nullopt;
    }
    return (address >> kFunctionShift & kDeviceAndFunctionBits) << kEcamFunctionShift | (address & kRegisterBits) |
           static_cast<std::uint32_t>(offset - kDataOffset);
}

} // namespace

ConfigPorts::ConfigPorts(RootBus& bus, Device& other, const State& state) noexcept
    : bus_(bus), other_(other), address_(state.address & (kEnabled | kAddressBits)) {}

void ConfigPorts::read(std::uint64_t offset, std::span<std::byte> data) noexcept {
    if (is_address_register(offset, data.size())) {
        const std::uint32_t value = address_.load();
        std::memcpy(data.data(), &value, sizeof value);
        return;
    }
    by_double_words(offset, data, [this](std::uint64_t at, std::span<std::byte> part) {
        if (at < kDataOffset) {
            other_.read(at, part);
        } else if (const auto to = selected(address_.load(), at)) {
            bus_.read_config(*to, part);
        } else {
            std::ranges::fill(part, kNoDevice);
        }
    });
}

void ConfigPorts::write(std::uint64_t offset, std::span<const std::byte> data) noexcept {
    if (is_address_register(offset, data.size())) {
        std::uint32_t value = 0;
        std::memcpy(&value, data.data(), sizeof value);
        address_ = value & (kEnabled | kAddressBits);
        return;
    }
    by_double_words(offset, data, [this](std::uint64_t at, std::span<const std::byte> part) {
        if (at < kDataOffset) {
            other_.write(at, part);
        } else if (const auto to = selected(address_.load(), at)) {
            bus_.write_config(*to, part);
        }
    });
}

} // namespace vmm::devices::pci
