#include <immintrin.h>

#include <array>
#include <cstring>

#include "vmm/state/crc32c.hpp"

namespace vmm {

namespace {

/// For each byte of a checksum (with its bits inverted): its value after `kStreamBytes` zeros. The processor needs
/// three clock cycles for the instruction, and can begin one in each cycle. So three streams are read at once, and this
/// table combines their checksums.
constexpr std::size_t kStreamBytes = 2048;
using Shift = std::array<std::array<std::uint32_t, 256>, 4>;

using BitMatrix = std::array<std::uint32_t, 32>; ///< the result of each bit

constexpr std::uint32_t product(const BitMatrix& matrix, std::uint32_t vector) {
    std::uint32_t sum = 0;
    for (std::size_t bit = 0; bit < matrix.size(); ++bit) {
        sum ^= (vector >> bit & 1U) != 0 ? matrix[bit] : 0;
    }
    return sum;
}

constexpr Shift make_shift() {
    BitMatrix matrix{}; // the effect of one zero bit
    matrix[0] = kCrc32cPolynomial;
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

std::uint64_t word_at(std::span<const std::byte> bytes, std::size_t offset) noexcept {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data() + offset, sizeof word);
    return word;
}

__attribute__((target("sse4.2"))) std::uint32_t by_instruction(std::span<const std::byte> bytes,
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

// The same for long texts, by multiplication without carries ("Fast CRC Computation for Generic Polynomials Using
// PCLMULQDQ Instruction", Intel, 2009). A part of the text can be added to the text n bits behind it if it is
// multiplied by x^n modulo the polynomial. 256 bytes are folded at once, until 16 bytes are left that have the same
// checksum as all.

/// x^n modulo the polynomial, with the lowest power in the highest bit, as the instruction takes it.
constexpr std::uint64_t power_of_x(unsigned n) {
    std::uint32_t power = std::uint32_t{1} << 31U;
    for (; n != 0; --n) {
        power = (power >> 1U) ^ ((power & 1U) != 0 ? kCrc32cPolynomial : 0);
    }
    return std::uint64_t{power} << 32U;
}

/// The factors that move 16 bytes by `Bits`; their first half must move 64 bits more. A product of numbers with
/// reversed bits is one place too low, so each power here is one less.
template <unsigned Bits>
constexpr std::array<std::uint64_t, 2> kMove{power_of_x(Bits + 64 - 1), power_of_x(Bits - 1)};

#define VMM_FOLDS __attribute__((target("avx512f,vpclmulqdq,pclmul,sse4.2")))

VMM_FOLDS inline __m512i loaded(std::span<const std::byte> bytes, std::size_t offset) noexcept {
    return _mm512_loadu_si512(bytes.data() + offset);
}

template <unsigned Bits>
VMM_FOLDS __m512i moved(__m512i text, __m512i onto) noexcept {
    const __m512i factors =
        _mm512_set4_epi64(static_cast<long long>(kMove<Bits>[1]), static_cast<long long>(kMove<Bits>[0]),
                          static_cast<long long>(kMove<Bits>[1]), static_cast<long long>(kMove<Bits>[0]));
    constexpr int kExclusiveOr = 0x96; // of three operands
    return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(text, factors, 0x00),
                                     _mm512_clmulepi64_epi128(text, factors, 0x11), onto, kExclusiveOr);
}

template <unsigned Bits>
VMM_FOLDS __m128i moved(__m128i text, __m128i onto) noexcept {
    const __m128i factors =
        _mm_set_epi64x(static_cast<long long>(kMove<Bits>[1]), static_cast<long long>(kMove<Bits>[0]));
    return _mm_xor_si128(
        _mm_xor_si128(_mm_clmulepi64_si128(text, factors, 0x00), _mm_clmulepi64_si128(text, factors, 0x11)), onto);
}

constexpr std::size_t kFoldedBytes = 256;

/// Returns the checksum of `bytes`, a multiple of kFoldedBytes that is not 0. `value` and the result have their bits
/// inverted.
VMM_FOLDS std::uint32_t fold(std::span<const std::byte> bytes, std::uint32_t value) noexcept {
    __m512i a = _mm512_xor_si512(loaded(bytes, 0), _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(value))));
    __m512i b = loaded(bytes, 64);
    __m512i c = loaded(bytes, 128);
    __m512i d = loaded(bytes, 192);
    for (std::size_t at = kFoldedBytes; at < bytes.size(); at += kFoldedBytes) {
        a = moved<2048>(a, loaded(bytes, at));
        b = moved<2048>(b, loaded(bytes, at + 64));
        c = moved<2048>(c, loaded(bytes, at + 128));
        d = moved<2048>(d, loaded(bytes, at + 192));
    }
    const __m512i all = moved<512>(moved<512>(moved<512>(a, b), c), d);
    const auto lane = [&all](std::size_t index) noexcept {
        std::array<long long, 2> words{};
        std::memcpy(words.data(), reinterpret_cast<const std::byte*>(&all) + 16 * index, sizeof words);
        return _mm_set_epi64x(words[1], words[0]);
    };
    __m128i last = lane(0);
    for (std::size_t index = 1; index < 4; ++index) {
        last = moved<128>(last, lane(index));
    }
    std::array<std::uint64_t, 2> words{};
    std::memcpy(words.data(), &last, sizeof words);
    return static_cast<std::uint32_t>(_mm_crc32_u64(_mm_crc32_u64(0, words[0]), words[1]));
}

// NOLINTBEGIN(readability-implicit-bool-conversion): they are an int for g++, and a bool for clang.
const bool kHasInstruction = __builtin_cpu_supports("sse4.2") != 0;
const bool kCanFold = kHasInstruction && __builtin_cpu_supports("vpclmulqdq") != 0 &&
                      __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("pclmul") != 0;
// NOLINTEND(readability-implicit-bool-conversion)

} // namespace

std::uint32_t crc32c_by_instruction(std::span<const std::byte> bytes, std::uint32_t before) noexcept {
    if (kHasInstruction) {
        return by_instruction(bytes, before);
    }
    return crc32c_by_table(bytes, before);
}

std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t before) noexcept {
    if (kCanFold && bytes.size() >= kFoldedBytes) {
        const std::size_t folded = bytes.size() / kFoldedBytes * kFoldedBytes;
        return by_instruction(bytes.subspan(folded), ~fold(bytes.first(folded), ~before));
    }
    return crc32c_by_instruction(bytes, before);
}

} // namespace vmm
