// The checksum of snapshots and migrations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace vmm {

/// CRC-32C (Castagnoli; RFC 3720, 12.1 and B.4) of `bytes`. `before` is the checksum of the bytes that come before
/// them, so that a long text can be checked in pieces; 0 if there are none. Threads: any.
[[nodiscard]] std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t before = 0) noexcept;

/// Calculate the same with the CPU's instruction for it (SSE 4.2), and without that instruction. crc32c() uses the
/// fastest method: for long texts it multiplies 64 bytes at a time if the processor can (VPCLMULQDQ, AVX-512). Threads:
/// any.
[[nodiscard]] std::uint32_t crc32c_by_instruction(std::span<const std::byte> bytes, std::uint32_t before = 0) noexcept;
[[nodiscard]] std::uint32_t crc32c_by_table(std::span<const std::byte> bytes, std::uint32_t before = 0) noexcept;

} // namespace vmm
