// Integers in the byte order of guests and files.
#pragma once

#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <vector>

namespace vmm::loader {

static_assert(std::endian::native == std::endian::little, "guest structures are little-endian and so is every host");

template <std::unsigned_integral T>
[[nodiscard]] constexpr std::array<std::byte, sizeof(T)> to_little_endian(T value) noexcept {
    return std::bit_cast<std::array<std::byte, sizeof(T)>>(value);
}

template <std::unsigned_integral T>
void append_little_endian(std::vector<std::byte>& bytes, T value) {
    const auto raw = to_little_endian(value);
    bytes.insert(bytes.end(), raw.begin(), raw.end());
}

} // namespace vmm::loader
