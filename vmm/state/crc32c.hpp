// The checksum of snapshots and migrations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace vmm {

/// The polynomial with its bits reversed, as the lowest bit of a byte comes first.
inline constexpr std::uint32_t kCrc32cPolynomial = 0x82f63b78;

/// CRC-32C (Castagnoli; RFC 3720, 12.1 and B.4) of `bytes`. `before` is the checksum of the bytes that come before
/// them, so that a long text can be checked in pieces; 0 if there are none. Threads: any.
[[nodiscard]] std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t before = 0) noexcept;

/// Calculate the same with the CPU's instruction for it (SSE 4.2), and without that instruction. crc32c() uses the
/// fastest method: for long texts it multiplies 64 bytes at a time if the processor can (VPCLMULQDQ, AVX-512). Threads:
/// any.
[[nodiscard]] std::uint32_t crc32c_by_instruction(std::span<const std::byte> bytes, std::uint32_t before = 0) noexcept;
[[nodiscard]] std::uint32_t crc32c_by_table(std::span<const std::byte> bytes, std::uint32_t before = 0) noexcept;

// Those that use instructions of x86 are in vmm/state/x86/crc32c.cpp.

} // namespace vmm
