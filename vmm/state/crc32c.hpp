// The checksum of snapshots.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace vmm {

/// CRC-32C (Castagnoli; RFC 3720, 12.1 and B.4) of `bytes`. `before` is the checksum of the bytes that come before
/// them, so that a long text can be taken in pieces; 0 if there are none. Threads: any.
[[nodiscard]] std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t before = 0) noexcept;

/// The same without the processor's instruction for it, which crc32c() uses where there is one.
[[nodiscard]] std::uint32_t crc32c_by_table(std::span<const std::byte> bytes, std::uint32_t before = 0) noexcept;

} // namespace vmm
