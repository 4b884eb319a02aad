// The data that the guest disk_writer.cpp writes to its disk. For the guest, and for tests that check the disk
// afterwards.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vmm::testing::disk_writer {

inline constexpr std::size_t kBlockBytes = 4096;
/// Blocks on the disk.
inline constexpr std::uint64_t kPlaces = 1024;
/// Writes in flight at once.
inline constexpr std::size_t kBatch = 16;
/// Odd, so that any kPlaces consecutive numbers have different places.
inline constexpr std::uint64_t kStep = 389;

/// The block to which write `number` goes.
[[nodiscard]] constexpr std::uint64_t place_of(std::uint64_t number) noexcept {
    return number * kStep % kPlaces;
}
/// The value of word `index` of the block then: the number, mixed with the word's position. Never 0 for a number from 1
/// on.
[[nodiscard]] constexpr std::uint64_t word_of(std::uint64_t number, std::uint64_t index) noexcept {
    return (number << 16) | (index ^ 0x5a5a);
}

} // namespace vmm::testing::disk_writer
