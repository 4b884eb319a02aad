#include "vmm/state/crc32c.hpp"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace vmm {

namespace {

/// The polynomial with its bits reversed, as the lowest bit of a byte comes first.
constexpr std::uint32_t kPolynomial = 0x82f63b78;

constexpr std::array<std::uint32_t, 256> make_table() {
    std::array<std::uint32_t, 256> table{};
    for (std::uint32_t byte = 0; byte < table.size(); ++byte) {
        std::uint32_t value = byte;
        for (int bit = 0; bit < 8; ++bit) {
            value = (value >> 1U) ^ ((value & 1U) != 0 ? kPolynomial : 0);
        }
        table[byte] = value;
    }
    return table;
}

constexpr std::array<std::uint32_t, 256> kTable = make_table();

/// For each byte of a checksum (with its bits inverted): what it becomes behind `kStreamBytes` zeros. The processor
/// needs three clock cycles for the instruction, and can begin one in each cycle. So three streams are read at once,
/// and this table puts their checksums together.
constexpr std::size_t kStreamBytes = 2048;
using Shift = std::array<std::array<std::uint32_t, 256>, 4>;

using BitMatrix = std::array<std::uint32_t, 32>; ///< what becomes of each bit

constexpr std::uint32_t product(const BitMatrix& matrix, std::uint32_t vector) {
    std::uint32_t sum = 0;
    for (std::size_t bit = 0; bit < matrix.size(); ++bit) {
        sum ^= (vector >> bit & 1U) != 0 ? matrix[bit] : 0;
    }
    return sum;
}

constexpr Shift make_shift() {
    BitMatrix matrix{}; // of one zero bit
    matrix[0] = kPolynomial;
    for (std::size_t bit = 1; bit < matrix.size(); ++bit) {
        matrix[bit] = 1U << (bit - 1);
    }
    for (std::size_t bits = 1; bits < 8 * kStreamBytes; bits *= 2) {
        const BitMatrix half = matrix;
        for (std::size_t bit = 0; bit < matrix.size(); ++bit) {
            matrix[bit] = product(half, half[bit]);
        }
    }
    Shift shift{};
    for (std::size_t place = 0; place < shift.size(); ++place) {
        for (std::uint32_t byte = 0; byte < 256; ++byte) {
            shift[place][byte] = product(matrix, byte << (8 * place));
        }
    }
    return shift;
}

constexpr Shift kShift = make_shift();

std::uint32_t shifted(std::uint32_t value) noexcept {
    return kShift[0][value & 0xffU] ^ kShift[1][value >> 8U & 0xffU] ^ kShift[2][value >> 16U & 0xffU] ^
           kShift[3][value >> 24U];
}

#if defined(__x86_64__)
std::uint64_t word_at(std::span<const std::byte> bytes, std::size_t offset) noexcept {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data() + offset, sizeof word);
    return word;
}

__attribute__((target("sse4.2"))) std::uint32_t crc32c_by_instruction(std::span<const std::byte> bytes,
                                                                      std::uint32_t before) noexcept {
    std::uint64_t value = ~before;
    while (bytes.size() >= 3 * kStreamBytes) {
        std::uint64_t second = 0;
        std::uint64_t third = 0;
        for (std::size_t offset = 0; offset < kStreamBytes; offset += sizeof value) {
            value = _mm_crc32_u64(value, word_at(bytes, offset));
            second = _mm_crc32_u64(second, word_at(bytes, kStreamBytes + offset));
            third = _mm_crc32_u64(third, word_at(bytes, 2 * kStreamBytes + offset));
        }
        const std::uint32_t two = shifted(static_cast<std::uint32_t>(value)) ^ static_cast<std::uint32_t>(second);
        value = shifted(two) ^ static_cast<std::uint32_t>(third);
        bytes = bytes.subspan(3 * kStreamBytes);
    }
    while (bytes.size() >= sizeof value) {
        value = _mm_crc32_u64(value, word_at(bytes, 0));
        bytes = bytes.subspan(sizeof value);
    }
    auto rest = static_cast<std::uint32_t>(value);
    for (const std::byte byte : bytes) {
        rest = _mm_crc32_u8(rest, static_cast<std::uint8_t>(byte));
    }
    return ~rest;
}

const bool kHasInstruction = __builtin_cpu_supports("sse4.2") != 0;
#endif

} // namespace

std::uint32_t crc32c_by_table(std::span<const std::byte> bytes, std::uint32_t before) noexcept {
    std::uint32_t value = ~before;
    for (const std::byte byte : bytes) {
        value = kTable[(value ^ static_cast<std::uint32_t>(byte)) & 0xffU] ^ (value >> 8U);
    }
    return ~value;
}

std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t before) noexcept {
#if defined(__x86_64__)
    if (kHasInstruction) {
        return crc32c_by_instruction(bytes, before);
    }
#endif
    return crc32c_by_table(bytes, before);
}

} // namespace vmm
