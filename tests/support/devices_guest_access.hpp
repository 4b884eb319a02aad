// The accesses of a guest's instructions to a device: `outb`, `inb`, and anything that a hostile guest does instead.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>

#include "devices/device.hpp"

namespace vmm::devices::testing {

inline std::uint8_t inb(Device& device, std::uint64_t offset) {
    std::array<std::byte, 1> data{};
    device.read(offset, data);
    return std::to_integer<std::uint8_t>(data[0]);
}

inline void outb(Device& device, std::uint64_t offset, unsigned value) {
    const std::array data{static_cast<std::byte>(value)};
    device.write(offset, data);
}

/// A guest that reads and writes at random: every offset around the device and some far away, every width from 0 to 8.
/// The same seed gives the same accesses.
class HostileGuest {
  public:
    explicit HostileGuest(std::uint64_t seed) : random_(seed) {}

    [[nodiscard]] std::uint64_t below(std::uint64_t limit) { return random_() % limit; }

    void access(Device& device, std::uint64_t device_size) {
        std::array<std::byte, 8> data{};
        for (std::byte& byte : data) {
            byte = static_cast<std::byte>(random_());
        }
        const std::uint64_t offset = below(16) == 0 ? random_() : below(device_size + 2);
        const std::span part = std::span{data}.first(below(4) == 0 ? below(data.size() + 1) : 1);
        if (below(2) == 0) {
            device.read(offset, part);
        } else {
            device.write(offset, part);
        }
    }

  private:
    std::mt19937_64 random_;
};

} // namespace vmm::devices::testing
