#include "vmm/state/crc32c.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace vmm {
namespace {

std::vector<std::byte> bytes_from(unsigned first, int step) {
    std::vector<std::byte> bytes(32);
    for (std::size_t i = 0; i < bytes.size(); ++i) {
        bytes[i] = static_cast<std::byte>(static_cast<int>(first) + static_cast<int>(i) * step);
    }
    return bytes;
}

TEST(Crc32c, IsThatOfTheStandard) { // RFC 3720, B.4
    EXPECT_EQ(crc32c(std::vector<std::byte>(32, std::byte{0})), 0x8a9136aaU);
    EXPECT_EQ(crc32c(std::vector<std::byte>(32, std::byte{0xff})), 0x62a8ab43U);
    EXPECT_EQ(crc32c(bytes_from(0, 1)), 0x46dd794eU);
    EXPECT_EQ(crc32c(bytes_from(31, -1)), 0x113fdb5cU);
    const std::string digits = "123456789";
    EXPECT_EQ(crc32c(std::as_bytes(std::span(digits))), 0xe3069283U);
    EXPECT_EQ(crc32c({}), 0U);
}

TEST(Crc32c, IsTheSameByEveryWayAtEveryLengthAndAlignment) {
    std::vector<std::byte> bytes(20'000);
    std::uint32_t value = 1;
    for (std::byte& byte : bytes) {
        value = value * 1103515245U + 12345U;
        byte = static_cast<std::byte>(value >> 16U);
    }
    for (std::size_t start = 0; start < 9; ++start) {
        for (std::size_t length = 0; start + length <= bytes.size(); length += 1 + length / 7) {
            const auto part = std::span(bytes).subspan(start, length);
            const std::uint32_t expected = crc32c_by_table(part, value);
            ASSERT_EQ(crc32c(part, value), expected) << start << ", " << length;
            ASSERT_EQ(crc32c_by_instruction(part, value), expected) << start << ", " << length;
        }
    }
}

TEST(Crc32c, OfPiecesIsThatOfTheWhole) {
    const std::vector<std::byte> bytes = bytes_from(7, 5);
    for (std::size_t cut = 0; cut <= bytes.size(); ++cut) {
        const auto front = std::span(bytes).first(cut);
        const auto back = std::span(bytes).subspan(cut);
        EXPECT_EQ(crc32c(back, crc32c(front)), crc32c(bytes));
        EXPECT_EQ(crc32c_by_instruction(back, crc32c_by_instruction(front)), crc32c(bytes));
        EXPECT_EQ(crc32c_by_table(back, crc32c_by_table(front)), crc32c(bytes));
    }
}

} // namespace
} // namespace vmm
