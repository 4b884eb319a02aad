#include "vmm/state/crc32c.hpp"

#include <array>

namespace vmm {

namespace {

constexpr std::array<std::uint32_t, 256> make_table() {
    std::array<std::uint32_t, 256> table{};
    for (std::uint32_t byte = 0; byte < table.size(); ++byte) {
        std::uint32_t value = byte;
        for (int bit = 0; bit < 8; ++bit) {
            value = (value >> 1U) ^ ((value & 1U) != 0 ? kCrc32cPolynomial : 0);
        }
        table[byte] = value;
    }
    return table;
}

constexpr std::array<std::uint32_t, 256> kTable = make_table();

} // namespace

std::uint32_t crc32c_by_table(std::span<const std::byte> bytes, std::uint32_t before) noexcept {
    std::uint32_t value = ~before;
    for (const std::byte byte : bytes) {
        value = kTable[(value ^ static_cast<std::uint32_t>(byte)) & 0xffU] ^ (value >> 8U);
    }
    return ~value;
}

} // namespace vmm
